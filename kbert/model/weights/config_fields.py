"""Stores fields of BertConfig in configs of formats that do not support all of them."""

import dataclasses

from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.model.weights.tensors import listed
from kbert.utils.formats import members


def kbert_fields(values, path):
    """Returns the fields that a config of another format stores under the key "kbert".

    Raises:
        UserError: the value contains anything but fields of BertConfig.
    """
    extra = values.get("kbert", {})
    members(extra, (), path)
    unknown = extra.keys() - {field.name for field in dataclasses.fields(BertConfig)}
    if unknown:
        raise UserError(f"{path} has under 'kbert' what is no field: {listed(unknown)}.")
    return extra


def extra_fields(values, known, fixed):
    """Returns the fields that a format lacks and that differ from its library's fixed values."""
    usual = dataclasses.asdict(BertConfig()) | fixed
    return {n: v for n, v in values.items() if n not in known and v != usual[n]}


def differences(config, code, fixed):
    """Returns notes on the differences between the config and the `fixed` values of `code`."""
    return [
        f"{code} always computes with {name} {value}; this model has {getattr(config, name)}, so "
        f"its outputs there differ from kbert's."
        for name, value in fixed.items()
        if getattr(config, name) != value
    ]
