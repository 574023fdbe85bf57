"""The task qa: the span of a context that answers a question."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from kbert.data.examples import QuestionExample, open_records, source_format
from kbert.data.records import BadExample
from kbert.data.squad import QuestionConverter, flatten_questions, locate_answer, read_squad
from kbert.errors import UserError, one_line
from kbert.model.models import BertForQuestionAnswering
from kbert.tasks.answers import answer_positions, best_answers, best_null_threshold
from kbert.tasks.arguments import same_length
from kbert.tasks.encoding import Encoded, unpad_batch, with_labels
from kbert.tasks.endpoint import Endpoint
from kbert.tasks.losses import choice_losses, soft_losses
from kbert.tasks.outputs import Outputs, Predictions, TensorDict
from kbert.tasks.span_ops import (
    TokenWindows,
    best_spans,
    question_windows,
    span_scores,
    tokenize_questions,
)
from kbert.tasks.squad import squad_scores
from kbert.tasks.task import BOOL, NUMBER, Task, int_at_least

if TYPE_CHECKING:
    from typing import Self

    from kbert.config import BertConfig
    from kbert.data.records import Record, Records
    from kbert.settings.tasks import ColumnConfig, FinetuneConfig
    from kbert.tasks.task import Check
    from kbert.tokenizer.tokenizer import BertTokenizer

_QUESTIONS = 64  # questions whose contexts are split into windows at once


class AnswerEndpoint(Endpoint):
    """Finds the answer to a question in a context."""

    name = "answer"
    texts: dict[str, int] = {"question": 1, "context": 1}
    forward_spec: dict[str, tuple[str, str]] = {
        "start_logits": ("BL", "one per token, as the start of the answer; at [CLS]: no answer"),
        "end_logits": ("BL", "one per token, as the end of the answer; at [CLS]: no answer"),
    }
    token_outputs: tuple[str, ...] = ("start_logits", "end_logits")
    output_spec: dict[str, str] = {
        "answer": "(B,) string, a span of the context; empty: no answer",
        "start": "(B,) int32, byte offset of the answer in the UTF-8 context; -1: no answer",
        "end": "(B,) int32, byte offset of the end of the answer, exclusive; -1: no answer",
        "score": "(B,) float32, start logit plus end logit of the answer, or no_answer_score",
        "no_answer_score": "(B,) float32, start plus end logit of [CLS], minimum over the windows",
    }

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        longest = self.task.max_query_length
        if longest + 4 > self.max_seq_length:
            raise UserError(
                f"questions of max_query_length = {longest} tokens, as in fine-tuning, leave no "
                f"room for a context: max_seq_length must be at least {longest + 4}; got "
                f"{self.max_seq_length}."
            )

    def encode_texts(
        self, question: tf.Tensor, context: tf.Tensor
    ) -> tuple[TensorDict, TensorDict]:
        task, lengths = self.task, (self.max_seq_length, self.task.doc_stride)
        tokens = tokenize_questions(question, context, self.tokenizer, task.max_query_length)
        windows = question_windows(*tokens, self.tokenizer, *lengths, self.limits)
        return windows.features, windows.tensors()

    def decode(self, texts: TensorDict, extra: TensorDict, outputs: TensorDict) -> TensorDict:
        task, windows, context = self.task, TokenWindows.from_tensors(extra), texts["context"]
        scores, none = span_scores(windows, outputs, task.max_answer_length)
        start, end, score = best_spans(windows, scores)
        answers = score > float("-inf")
        if task.allow_no_answer:
            answers &= none - score <= task.null_threshold
        return {
            "answer": tf.strings.substr(context, start, tf.where(answers, end - start, 0)),
            "start": tf.where(answers, start, -1),
            "end": tf.where(answers, end, -1),
            "score": tf.cast(tf.where(answers, score, none), tf.float32),
            "no_answer_score": tf.ensure_shape(tf.cast(none, tf.float32), [None]),
        }


class QuestionAnswering(Task):
    """The task of finding the span of a context that answers a question.

    Args:
        tokenizer, max_seq_length: as for `Task`.
        doc_stride: see `kbert.tasks.span_ops.question_windows`.
        max_query_length: see `kbert.tasks.span_ops.tokenize_questions`.
        max_answer_length, allow_no_answer, null_threshold: see `kbert.tasks.answers.best_answers`.

    Attributes:
        top_k: maximum number of candidates, which may overlap; None for at most 20 candidates that
            do not overlap.
    """

    name = "qa"
    method: str | None = "answer"
    model_class = BertForQuestionAnswering
    metric = "f1"
    output_names: tuple[str, ...] = ("start_logits", "end_logits")
    endpoint: type[Endpoint] | None = AnswerEndpoint
    call_options: tuple[str, ...] = ("top_k", "max_answer_length", "allow_no_answer")
    top_k: int | None = None
    max_seq_length = 384
    splits_into_windows = True
    texts: tuple[int, int | None] = (2, 2)
    example_fields: tuple[str, ...] = ("question", "context")
    task_specific_settings: "dict[str, Check]" = {
        "doc_stride": int_at_least(1),
        "max_query_length": int_at_least(1),
        "max_answer_length": int_at_least(1),
        "null_threshold": NUMBER,
        "allow_no_answer": BOOL,
    }

    @classmethod
    def from_config(
        cls,
        config: "FinetuneConfig",
        tokenizer: "BertTokenizer",
        label_names: tuple[str, ...] | None = None,
        allow_no_answer: bool = False,
    ) -> "Self":
        names = [name for name in cls.task_specific_settings if name != "allow_no_answer"]
        settings = {name: getattr(config, name) for name in names}
        settings["null_threshold"] = settings["null_threshold"] or 0.0
        length = config.max_seq_length or cls.max_seq_length
        return cls(tokenizer, length, allow_no_answer=allow_no_answer, **settings)

    @classmethod
    def from_settings(
        cls, settings: dict[str, Any], tokenizer: "BertTokenizer", config: "BertConfig"
    ) -> "Self":
        return cls(tokenizer, **settings)

    @classmethod
    def reader(
        cls, source: str, config: "ColumnConfig", labeled: bool
    ) -> "tuple[Records, Callable[[str, Record], QuestionExample]]":
        if source_format(source) == "json":
            return read_squad(source, os.path.basename(source)), QuestionConverter(labeled)
        records = open_records(source, cls.name, allow_tables=False)
        return flatten_questions(records), QuestionConverter(labeled)

    @classmethod
    def checked_for_training(
        cls, examples: list[QuestionExample], skip_bad_lines: bool, report: Callable[[str], object]
    ) -> list[QuestionExample]:
        kept, moved, first = [], 0, ""
        for example in examples:
            try:
                answers = tuple(locate_answer(a, example.context) for a in example.answers)
            except BadExample as error:
                first = first or f"{example.where}: {error}."
                if not skip_bad_lines:
                    raise UserError(
                        f"{first} Fix it, or skip such lines with --skip_bad_lines."
                    ) from None
                continue
            moved += answers != example.answers
            kept.append(dataclasses.replace(example, answers=answers))
        if not kept:
            raise UserError(f"no question can be used for training; {first}")
        if moved:
            report(
                f"note: {moved:,} of {len(examples):,} training questions have answers whose "
                f"answer_start is missing or does not account for white space; the answers were "
                f"located by their text"
            )
        if first:
            left = len(examples) - len(kept)
            report(
                one_line(
                    f"note: {left:,} of {len(examples):,} training questions are skipped; the "
                    f"first: {first}"
                )
            )
        return kept

    @classmethod
    def examples(cls, questions: Sequence[str], contexts: Sequence[str]) -> list[QuestionExample]:
        contexts = same_length(questions, contexts, "contexts", of="questions")
        return [
            QuestionExample(f"question {i}", str(i), question, context)
            for i, (question, context) in enumerate(zip(questions, contexts, strict=True))
        ]

    @staticmethod
    def from_endpoint_output(output: dict[str, Any]) -> dict[str, Any]:
        answer = output["answer"].decode()
        return output | {"answer": answer, "text": answer}

    @staticmethod
    def to_endpoint_output(prediction: dict[str, Any]) -> dict[str, Any]:
        offsets = {name: prediction[f"byte_{name}"] for name in ("start", "end")}
        offsets = {name: -1 if value is None else value for name, value in offsets.items()}
        return prediction | offsets | {"answer": prediction["text"]}

    def __init__(
        self,
        tokenizer: "BertTokenizer",
        max_seq_length: int = 384,
        doc_stride: int = 128,
        max_query_length: int = 64,
        max_answer_length: int = 30,
        allow_no_answer: bool = False,
        null_threshold: float = 0.0,
    ):
        super().__init__(tokenizer, None, max_seq_length)
        self.doc_stride = doc_stride
        self.max_query_length = max_query_length
        self.max_answer_length = max_answer_length
        self.allow_no_answer = allow_no_answer
        self.null_threshold: float = null_threshold

    def config_fields(self) -> dict[str, Any]:
        return {}

    @classmethod
    def split_groups(cls, examples: Sequence[QuestionExample]) -> tuple[list[Any], list[Any]]:
        return [None] * len(examples), [example.context for example in examples]

    def label_summary(self, examples: Sequence[QuestionExample]) -> str:
        without = sum(example.is_impossible for example in examples)
        return f"{len(examples) - without:,} questions with an answer, {without:,} without"

    def data_warnings(self, examples: Sequence[QuestionExample]) -> list[str]:
        answered = [example for example in examples if example.answers]
        texts = [answer.text for example in answered for answer in example.answers]
        lengths = iter(self.tokenizer.tokenize(texts).row_lengths().numpy())
        shortest = [min(next(lengths) for _ in example.answers) for example in answered]
        long = sum(length > self.max_answer_length for length in shortest)
        if not long:
            return []
        return [
            f"the answers of {long:,} of {len(answered):,} questions ({long / len(answered):.1%}) "
            f"are longer than --max_answer_length={self.max_answer_length} tokens, so they are "
            f"never predicted; the longest has {max(shortest):,}"
        ]

    def encode(
        self, examples: Sequence[QuestionExample], class_weights: np.ndarray | None = None
    ) -> Encoded:
        for name in ("doc_stride", "max_query_length"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1; got {getattr(self, name)}.")
        items, parts = [], []
        for begin in range(0, len(examples), _QUESTIONS):
            part = examples[begin : begin + _QUESTIONS]
            windows = self._windows(part)
            rows = unpad_batch(windows.features)
            items += [
                item if answer is None else with_labels(item, answer, np.int32)
                for item, answer in zip(rows, answer_positions(part, windows), strict=True)
            ]
            parts.append(dataclasses.replace(windows, features=None))
        return Encoded(items, parts)

    def _windows(self, examples):
        questions, columns = tokenize_questions(
            [example.question for example in examples],
            [example.context for example in examples],
            self.tokenizer,
            self.max_query_length,
        )
        for example, length in zip(examples, questions.row_lengths().numpy(), strict=True):
            if length + 4 > self.max_seq_length:
                raise UserError(
                    f"{example.where}: the question takes up {length} tokens (max_query_length is "
                    f"{self.max_query_length}), which leaves no room for the context; "
                    f"max_seq_length must be at least {length + 4}, got {self.max_seq_length}. "
                    "Raise it, or lower max_query_length."
                )
        return question_windows(
            questions, columns, self.tokenizer, self.max_seq_length, self.doc_stride
        )

    def losses(self, outputs: TensorDict, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        start_losses, start_right = choice_losses(outputs["start_logits"], labels[:, 0])
        end_losses, end_right = choice_losses(outputs["end_logits"], labels[:, 1])
        return (start_losses + end_losses) / 2, start_right * end_right

    def soft_losses(
        self, outputs: TensorDict, teacher_outputs: TensorDict, temperature: float
    ) -> tf.Tensor:
        """Returns the mean of the distillation losses of the start and the end, (B,) float32."""
        start, end = (
            soft_losses(outputs[name], teacher_outputs[name], temperature)
            for name in self.output_names
        )
        return (start + end) / 2

    def predictions(
        self, examples: Sequence[QuestionExample], encoded: Encoded, outputs: Outputs
    ) -> list[dict[str, Any]]:
        return best_answers(
            examples,
            encoded.windows,
            outputs,
            max_answer_length=self.max_answer_length,
            allow_no_answer=self.allow_no_answer,
            null_threshold=self.null_threshold,
            top_k=20 if self.top_k is None else self.top_k,
            allow_overlap=self.top_k is not None,
        )

    def find_threshold(self, examples: Sequence[QuestionExample], predictions: Predictions) -> None:
        """Sets `null_threshold` to the value with the best F1 on the examples.

        Args:
            examples: labeled examples.
            predictions: results of `predictions` for the examples.

        Raises:
            UserError: there are no examples, or one is unlabeled.
        """
        self.null_threshold, _ = best_null_threshold(examples, predictions)

    def scores(
        self, examples: Sequence[QuestionExample], predictions: Predictions
    ) -> dict[str, float]:
        answers = {
            e.id: prediction["text"] for e, prediction in zip(examples, predictions, strict=True)
        }
        scores = squad_scores(examples, answers)
        return scores | ({"null_threshold": self.null_threshold} if self.allow_no_answer else {})
