"""The teacher of a distillation run: its model, and checks that a student can learn from it."""

import hashlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from kbert.errors import UserError
from kbert.model.weights import part_of, resolve_layers

if TYPE_CHECKING:
    import tensorflow as tf

    from kbert.config import BertConfig
    from kbert.model.folder import ModelFolder
    from kbert.model.pretrained import PretrainedModel
    from kbert.settings import DistillConfig, PretrainConfig
    from kbert.tokenizer import BertTokenizer


def initial_layers(
    config: "PretrainConfig | DistillConfig", teacher: "BertConfig"
) -> tuple[int, ...] | None:
    """Returns the blocks of the teacher that initialize the student, numbered from 1.

    The result is None if `init_from` is not the teacher.
    """
    if os.path.normpath(config.teacher) != os.path.normpath(config.init_from or ""):
        return None
    N, layers = teacher.num_hidden_layers, config.parse_student_layers()
    return _resolve_layers(config, -(-N // 2) if layers is None else layers, N)


def _resolve_layers(config, layers, N):
    try:
        return resolve_layers(layers, N)
    except UserError as error:
        raise UserError(f"student_{error} {config.teacher} has {N}.") from None


def check_heads(folder: "ModelFolder", model_class: "type[PretrainedModel]") -> None:
    """Raises UserError if the teacher lacks a task head, which would be randomly initialized."""
    with folder.open_weights(parts=model_class.task_heads) as (_, weights):
        lacking = set(model_class.task_heads) - {part_of(name) for name in weights}
    if lacking:
        raise UserError(
            f"the teacher, {folder}, lacks the task head {', '.join(sorted(lacking))}. Use a "
            f"teacher that was trained for the student's task."
        )


class Teacher:
    """The teacher of a run; `load` creates its model.

    Attributes:
        config: config of the teacher.
        layers: numbers, from 1, of the teacher's blocks that the student's blocks learn from; empty
            if blocks are not compared.
        fingerprint: SHA-256 of the teacher's weights; None before `load`.
        parameters: number of parameters; None before `load`.
    """

    config: "BertConfig"
    layers: tuple[int, ...]
    fingerprint: str | None
    parameters: int | None

    def __init__(
        self,
        folder: "ModelFolder",
        config: "PretrainConfig | DistillConfig",
        student: "BertConfig",
        tokenizer: "BertTokenizer",
    ) -> None:
        self._folder, self._settings = folder, config
        self._model = self.fingerprint = self.parameters = None
        self.config = teacher_config = folder.config
        if folder.tokenizer.fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"the student's vocabulary or casing differs from its teacher's, {folder}, so "
                f"their token ids do not match. Use a student with the teacher's vocabulary."
            )
        if config.max_seq_length > teacher_config.max_position_embeddings:
            raise UserError(
                f"max_seq_length must be at most {teacher_config.max_position_embeddings}, the "
                f"max_position_embeddings of the teacher, {folder}; got {config.max_seq_length}."
            )
        if student.type_vocab_size > teacher_config.type_vocab_size:
            raise UserError(
                f"the student has type_vocab_size {student.type_vocab_size}, but its teacher, "
                f"{folder}, has {teacher_config.type_vocab_size}. Use a teacher with at least as "
                f"many segment types."
            )
        self._compares = bool(config.hidden_weight or config.attention_weight)
        self.layers = ()
        if self._compares:
            self.layers = self._matching_layers(student)
            self._check_sizes(student)
        elif config.student_layers and initial_layers(config, teacher_config) is None:
            raise UserError(
                "student_layers has no effect on a student that neither starts from its teacher's "
                "blocks nor is compared with them. Remove it or --init_from, or set "
                "--hidden_weight or --attention_weight."
            )

    def _matching_layers(self, student):
        N, M = self.config.num_hidden_layers, student.num_hidden_layers
        layers = self._settings.parse_student_layers()
        if layers is None and M > N:
            raise UserError(
                f"the student has {M} blocks, but its teacher, {self._settings.teacher}, has {N}: "
                f"they cannot be compared. Set --hidden_weight=0 --attention_weight=0."
            )
        layers = _resolve_layers(self._settings, M if layers is None else layers, N)
        if len(layers) != M:
            raise UserError(
                f"student_layers must select as many blocks of the teacher as the student has, "
                f"{M}; got {self._settings.student_layers}."
            )
        return layers

    def _check_sizes(self, student):
        heads = _head_counts_text(student), _head_counts_text(self.config, self.layers)
        sizes = {
            "hidden_weight": ("width", student.hidden_size, self.config.hidden_size),
            "attention_weight": ("heads", *heads),
        }
        for weight, (what, student_size, teacher_size) in sizes.items():
            if getattr(self._settings, weight) and student_size != teacher_size:
                raise UserError(
                    f"{weight} compares block by block: the student must have the teacher's "
                    f"{what}, {teacher_size}; got {student_size}. Set --{weight}=0 for this "
                    f"student."
                )

    def load(self, model_class: "type[PretrainedModel]") -> None:
        """Creates the frozen model, and sets `fingerprint` and `parameters`.

        Must be called in the scope of the distribution strategy.
        """
        settings = self._settings
        model = model_class.from_pretrained(self._folder, dtype=settings.precision)
        model.trainable = False
        self.enable_outputs(model)
        digest = hashlib.sha256()
        for weight in model.weights:
            digest.update(np.ascontiguousarray(weight.numpy()))
        self._model, self.fingerprint = model, digest.hexdigest()
        self.parameters = model.count_params()

    def enable_outputs(self, model: "PretrainedModel") -> None:
        """Makes the student or the teacher return the hidden states and attention to compare."""
        model.bert.output_hidden_states = bool(self._settings.hidden_weight)
        model.bert.output_attentions = bool(self._settings.attention_weight)

    def __call__(self, features: "Mapping[str, tf.Tensor]") -> dict[str, Any]:
        """Returns the outputs of the teacher, computed without dropout."""
        return self._model(features, training=False)

    def describe(self) -> str:
        """Returns a line of text about the teacher and what the student learns from it."""
        config, settings = self.config, self._settings
        parts = [f"probabilities ({settings.soft_weight:g} of the weight)"]
        parts += ["hidden states"] * bool(settings.hidden_weight)
        parts += ["attention"] * bool(settings.attention_weight)
        blocks = f" of its blocks {', '.join(map(str, self.layers))}" if self._compares else ""
        return (
            f"teacher: {settings.teacher}, {config.num_hidden_layers} layers, width "
            f"{config.hidden_size}; distilled: {', '.join(parts)}{blocks}"
        )


def _head_counts_text(config, layers=None):
    """Returns the head counts of blocks as text; `layers` are numbered from 1, None for all."""
    layers = layers or range(1, config.num_hidden_layers + 1)
    return ", ".join(str(config.block_heads(number - 1)) for number in layers)
