"""Checks the arguments of the prediction methods: texts, and the maximum sequence length."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from kbert.errors import UserError

if TYPE_CHECKING:
    from typing import TypeVar

    from kbert.config import BertConfig

    Others = TypeVar("Others", bound=Sequence[Any] | None)


def as_batch(*columns: Any) -> list[list[Any] | None]:
    """Converts the arguments of a prediction method to lists; a str becomes a list of one text.

    Args:
        *columns: a str, a list of str, or None each. In all columns but the first, an element may
            also be a list of str, such as the choices for a text.

    Raises:
        UserError: an argument has another type, or the first is a list and another is a str.
    """
    if isinstance(columns[0], str):
        columns = tuple(column if column is None else [column] for column in columns)
    for column in filter(lambda column: column is not None, columns):
        if isinstance(column, str):
            raise UserError(
                f"all arguments must have the same number of texts; got a list of texts, and one "
                f"text as a str: {column[:60]!r}."
            )
        elements = column if isinstance(column, Iterable) else [column]
        for element in elements:
            texts = (
                element
                if isinstance(element, list | tuple) and column is not columns[0]
                else [element]
            )
            if not all(isinstance(text, str) for text in texts):
                raise UserError(
                    f"texts must be a str or a list of str; got {type(element).__name__}: "
                    f"{str(element)[:60]!r}."
                )
    return [column if column is None else list(column) for column in columns]


def same_length(texts: Sequence[Any], others: "Others", name: str, of: str = "texts") -> "Others":
    """Checks that `others` is None or as long as `texts`, and returns it.

    Args:
        texts, others: arguments of a prediction method.
        name: name of `others` in the error message.
        of: name of `texts` in the error message.

    Raises:
        UserError: the lengths differ.
    """
    if others is not None and len(others) != len(texts):
        raise UserError(
            f"there must be as many {name} as {of}; got {len(others)} and {len(texts)}."
        )
    return others


def check_length(max_seq_length: int, config: "BertConfig") -> None:
    """Raises UserError unless `max_seq_length` is 5 to `max_position_embeddings` of the config."""
    if not 5 <= max_seq_length <= config.max_position_embeddings:
        raise UserError(
            f"max_seq_length must be 5 to {config.max_position_embeddings}, the model's "
            f"max_position_embeddings; got {max_seq_length}."
        )
