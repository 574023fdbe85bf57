"""Windows of questions, and answers from their logits, as the task of questions makes them."""

import types

import numpy as np

from kbert.tasks.answers import best_answers
from kbert.tasks.qa import QuestionAnswering
from kbert.tasks.span_ops import has_maximum_context


class Windows(list):
    """A namespace for each window. encoded: of the task."""

    def __init__(self, encoded):
        self.encoded = encoded
        items, examples = iter(encoded.items), 0
        for part in encoded.windows:
            starts, ends = part.starts.numpy(), part.ends.numpy()
            is_max_context = has_maximum_context(part).numpy()
            for row, owner in enumerate(part.owner.numpy()):
                item = next(items)
                inside = part.inside[row].numpy()
                tokens = slice(part.begin[row].numpy(), part.begin[row].numpy() + inside.sum())
                self.append(
                    types.SimpleNamespace(
                        example=examples + owner,
                        input_ids=item.input_ids,
                        token_type_ids=item.token_type_ids,
                        context_begin=int(part.first[row, 0]),
                        starts=starts[owner][tokens],
                        ends=ends[owner][tokens],
                        is_max_context=is_max_context[row][inside],
                        start_position=None if item.labels is None else item.labels[0],
                        end_position=None if item.labels is None else item.labels[1],
                    )
                )
            examples += len(starts)


def question_windows(examples, tokenizer, max_seq_length, doc_stride, max_query_length=64):
    """The Windows of examples."""
    task = QuestionAnswering(tokenizer, max_seq_length, doc_stride, max_query_length)
    return Windows(task.encode(examples))


def answers_of(examples, windows, starts, ends, *arguments, **settings):
    """`best_answers` for start and end logits, a list of arrays each."""
    rows = zip(starts, ends, strict=True)
    outputs = [{"start_logits": np.asarray(s), "end_logits": np.asarray(e)} for s, e in rows]
    return best_answers(examples, windows.encoded.windows, outputs, *arguments, **settings)
