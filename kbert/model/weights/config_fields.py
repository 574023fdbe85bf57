"""Stores fields of BertConfig in the configs of formats that lack them."""

import dataclasses
import os
from collections.abc import Collection, Mapping
from typing import Any

from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.model.weights.tensors import names_text
from kbert.utils.formats import get_members


def kbert_fields(values: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the fields that a config of another format stores under the key "kbert".

    Raises:
        UserError: the key contains anything but fields of BertConfig.
    """
    extra = values.get("kbert", {})
    get_members(extra, (), path)
    unknown = extra.keys() - {field.name for field in dataclasses.fields(BertConfig)}
    if unknown:
        raise UserError(f"{path} has unknown fields under 'kbert': {names_text(unknown)}.")
    return extra


def extra_fields(
    values: Mapping[str, Any], known: Collection[str], fixed: dict[str, Any]
) -> dict[str, Any]:
    """Returns fields that a format lacks and that differ from its library's fixed values."""
    usual = dataclasses.asdict(BertConfig()) | fixed
    return {n: v for n, v in values.items() if n not in known and v != usual[n]}


def differences(config: BertConfig, code: str, fixed: Mapping[str, object]) -> list[str]:
    """Returns notes on the config values that differ from the `fixed` values of `code`."""
    return [
        f"{code} always computes with {name} {value}; this model has {getattr(config, name)}, so "
        f"the outputs differ from kbert's."
        for name, value in fixed.items()
        if getattr(config, name) != value
    ]
