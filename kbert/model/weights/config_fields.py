"""Fields of BertConfig in configs of other formats that have no place for all of them."""

import dataclasses

from kbert.config import BertConfig
from kbert.errors import UserError
from kbert.model.weights.tensors import listed
from kbert.utils.formats import members


def kbert_fields(values, path):
    """The fields that a config of another format keeps under the key "kbert".

    Raises:
        UserError: it holds something else.
    """
    extra = values.get("kbert", {})
    members(extra, (), path)
    unknown = extra.keys() - {field.name for field in dataclasses.fields(BertConfig)}
    if unknown:
        raise UserError(f"{path} has under 'kbert' what is no field: {listed(unknown)}.")
    return extra


def extra_fields(values, known, fixed):
    """Fields that a format has no place for and that are not what its code takes."""
    usual = dataclasses.asdict(BertConfig()) | fixed
    return {n: v for n, v in values.items() if n not in known and v != usual[n]}


def differences(config, code, fixed):
    """Lines that say where `code`, which takes `fixed` for granted, computes something else."""
    return [
        f"{code} always computes with {name} {value}; this model has {getattr(config, name)}, so "
        f"its outputs there differ from kbert's."
        for name, value in fixed.items()
        if getattr(config, name) != value
    ]
