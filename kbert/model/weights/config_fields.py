"""Fields of BertConfig that another format lacks, stored under "kbert" in its config file."""

import dataclasses
import os
from collections.abc import Collection, Mapping
from typing import Any

from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.model.weights.tensors import abbreviate_names
from kbert.utils.formats import require_keys


def kbert_fields(values: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the fields of BertConfig that another format's config has under the key "kbert".

    Raises UserError if the value of "kbert" is not an object of fields of BertConfig.
    """
    extra = values.get("kbert", {})
    require_keys(extra, (), path)
    unknown = extra.keys() - {field.name for field in dataclasses.fields(BertConfig)}
    if unknown:
        raise UserError(f"{path} has unknown fields under 'kbert': {abbreviate_names(unknown)}.")
    return extra


def extra_fields(
    values: Mapping[str, Any], known: Collection[str], fixed: dict[str, Any]
) -> dict[str, Any]:
    """Returns the fields to store under the key "kbert", of all fields of a BertConfig.

    A field is stored if it is not `known` to the format, unless its value is the one that is
    hard-coded in the format's library, in `fixed`, or, if none is, the default of BertConfig.
    """
    usual = dataclasses.asdict(BertConfig()) | fixed
    return {n: v for n, v in values.items() if n not in known and v != usual[n]}


def differences(config: BertConfig, code: str, fixed: Mapping[str, object]) -> list[str]:
    """Returns a note on each field that differs from its value in `fixed`, hard-coded in `code`."""
    return [
        f"{code} always computes with {name} {value}; this model has {getattr(config, name)}, so "
        f"the outputs differ from kbert's."
        for name, value in fixed.items()
        if getattr(config, name) != value
    ]
