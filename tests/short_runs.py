"""Skips the parts of a tiny run that take longer than its steps."""

VARIABLE = "KBERT_TESTS_SHORT_RUNS"  # set in programs that `warm_python` shortens


def shorten(replace=setattr):
    """Disables `curves.png` and the predictions of masked words."""
    from kbert.train.masked_words import MaskedWords
    from kbert.visualization import curves

    replace(curves, "plot_curves", lambda path, curves: None)
    replace(MaskedWords, "on_train_begin", lambda self: None)
