"""Task pair: one of C labels for two texts."""

from collections.abc import Callable

from kbert.data.examples import TextExample
from kbert.data.text_columns import TextRoles
from kbert.tasks.classify import Classification

_INFERENCE = {"entailment", "neutral", "contradiction", "-"}


class PairClassification(Classification):
    """One of C labels for two texts."""

    name = "pair"
    summary = "one label for two texts"
    takes_pairs = True
    roles: TextRoles = TextRoles(texts=(2, 2))

    @classmethod
    def finished(
        cls, examples: list[TextExample], note: Callable[[str], object]
    ) -> list[TextExample]:
        """Drops NLI examples with the label "-", which means that the annotators disagreed."""
        labels = {str(example.label).lower() for example in examples}
        labelled = [example for example in examples if example.label != "-"]
        if len(labelled) in (0, len(examples)) or not labels <= _INFERENCE:
            return examples
        left_out = len(examples) - len(labelled)
        note(f"{left_out:,} of {len(examples):,} examples have no gold label, '-'; skipped")
        return labelled
