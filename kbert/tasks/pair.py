"""Task pair: one of C labels for two texts."""

from collections.abc import Sequence

from kbert.data.columns import SECOND_TEXTS, TEXTS, ColumnAliases
from kbert.tasks.classify import Classification

_PLAIN = ColumnAliases(text_pair=SECOND_TEXTS, needs_pair=True)
# QNLI's columns are question and sentence.
_QNLI = ColumnAliases(
    text=("question", *(name for name in TEXTS if name != "sentence")),
    text_pair=("sentence",),
    needs_pair=True,
)


class PairClassification(Classification):
    """One of C labels for two texts."""

    name = "pair"
    summary = "one label for two texts"
    takes_pairs = True

    @classmethod
    def column_aliases(cls, names: Sequence[str]) -> ColumnAliases:
        is_qnli = "sentence" in names and not set(names) & set(SECOND_TEXTS)
        return _QNLI if is_qnli else _PLAIN
