"""The task pair: one of C labels for two texts."""

from collections.abc import Callable

from kbert.data.examples import TextExample
from kbert.data.text_columns import TextRoles
from kbert.tasks.classify import Classification

_INFERENCE = {"entailment", "neutral", "contradiction", "-"}
_NUMBERS = {"0", "1", "2", "-1"}  # the same labels in Hugging Face data sets


class PairClassification(Classification):
    """The task of predicting one of C labels for two texts."""

    name = "pair"
    takes_pairs = True
    roles: TextRoles = TextRoles(texts=(2, 2))

    @classmethod
    def standardize_examples(
        cls, examples: list[TextExample], note: Callable[[str], object]
    ) -> list[TextExample]:
        """Drops examples of natural language inference without a gold label: "-" or -1.

        Examples are dropped only if there are no labels other than entailment, neutral,
        contradiction and "-" (in any case), or if the labels are exactly 0, 1, 2 and -1.
        """
        labels = {str(example.label).lower() for example in examples}
        missing = "-1" if labels == _NUMBERS else "-"
        labeled = [example for example in examples if example.label != missing]
        if len(labeled) in (0, len(examples)) or not (labels <= _INFERENCE or labels == _NUMBERS):
            return examples
        skipped = len(examples) - len(labeled)
        note(f"skipped {skipped:,} of {len(examples):,} examples without a gold label ({missing})")
        return labeled
