"""Hard negatives for pairs of texts: texts that an encoder finds similar to the first text."""

import collections
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from kbert.data.columns import count_text
from kbert.errors import UserError
from kbert.fields import shared_settings
from kbert.inference.predictor import Predictor
from kbert.settings import ColumnConfig, ExampleConfig, MineConfig
from kbert.tasks.examples import read_split
from kbert.utils import atomic
from kbert.utils.input_files import encoding_note, read_byte_lines

_QUERIES_PER_PASS = 1 << 14  # limits the memory for their nearest texts


def mine(config: MineConfig, report: Callable[[str], object] = print) -> None:
    """Writes pairs of texts with hard negatives, as JSON lines.

    The negatives of a pair are the texts nearest to the query, nearest first, that `skip_top`,
    `top_k` and `margin` allow. The query and its positives are excluded. Texts that differ only in
    case and spaces count as the same text. Pairs with too few negatives are omitted. The corpus is
    read and embedded once for every 16,384 distinct queries, in parts.

    Args:
        config: settings of the program.
        report: called with each line of output.

    Raises:
        UserError: the model or a file cannot be used, or no pair has enough negatives.
    """
    positives = _read_positives(config, report)
    pairs = sum(map(len, positives.values()))
    predictor = Predictor.from_pretrained(
        config.model, batch_size=config.batch_size, backend=config.backend
    )
    with (
        atomic.file(os.path.realpath(config.output_file)) as path,
        tqdm(unit=" texts", file=sys.stderr, disable=None) as bar,
        open(path, "w", encoding="utf-8") as output,
    ):
        predictor.advance, written = bar.update, 0
        for row in _mined_rows(config, predictor, positives):
            output.write(json.dumps(row, ensure_ascii=False) + "\n")
            written += 1
        if not written:
            raise UserError(
                f"no pair of {config.pairs_file} has at least "
                f"{count_text(config.num_negatives, 'negative')}. Use a larger --corpus_file, "
                f"increase --top_k, or decrease --num_negatives, --margin or --skip_top."
            )
    if written < pairs:
        report(
            f"note: {pairs - written:,} of {count_text(pairs, 'pair')} omitted, with fewer than "
            f"{count_text(config.num_negatives, 'negative')}"
        )
    report(f"wrote {count_text(written, 'pair')} with negatives to {config.output_file}")


def _read_positives(config, report):
    """Returns a dict of query -> list of its positives, all without duplicates, in order."""
    columns = ExampleConfig(**shared_settings(config, ColumnConfig), task="embed")
    examples = read_split(config.pairs_file, columns, report=report)
    if examples[0].label is not None:
        raise UserError(
            f"{config.pairs_file} has pairs with a score, but kbert.mine needs pairs of similar "
            f"texts. Keep only the similar pairs, and remove the column of the score."
        )
    if all(example.texts[0] == example.texts[1] for example in examples):
        raise UserError(
            f"{config.pairs_file} has single texts, but kbert.mine needs pairs of similar texts."
        )
    if len(examples[0].texts) > 2:
        report(
            f"note: the negatives in {config.pairs_file} are ignored; the output has only new ones"
        )
    positives = collections.defaultdict(dict)
    for example in examples:
        positives[example.texts[0]][example.texts[1]] = None
    return {query: list(texts) for query, texts in positives.items()}


def _mined_rows(
    config: MineConfig, predictor: Predictor, positives: Mapping[str, Sequence[str]]
) -> Iterator[dict[str, str]]:
    """Yields a row of the output for each pair with enough negatives."""
    top_k = config.top_k + max(map(len, positives.values())) + 1  # more: the excluded texts
    distinct = iter(positives)
    while queries := list(itertools.islice(distinct, _QUERIES_PER_PASS)):
        pairs = [(query, text) for query in queries for text in positives[query]]
        limits = _similarity_limits(config, predictor, pairs)
        nearest = predictor.search(queries, _corpus(config, positives), top_k)
        candidates = {
            query: without_equal_texts(rows, [query, *positives[query]])
            for query, rows in zip(queries, nearest, strict=True)
        }
        for (query, positive), limit in zip(pairs, limits, strict=True):
            rows = candidates[query][config.skip_top : config.top_k]
            texts = [row["text"] for row in rows if row["similarity"] <= limit]
            if len(texts) >= config.num_negatives:
                negatives = enumerate(texts[: config.num_negatives], 1)
                yield {"query": query, "positive": positive} | {
                    f"negative_{number}": text for number, text in negatives
                }


def _similarity_limits(config, predictor, pairs):
    """Returns the highest similarity that a negative of each pair may have."""
    if config.margin is None:
        return [float("inf")] * len(pairs)
    rows = predictor.similarity(*map(list, zip(*pairs, strict=True)))
    return [row["similarity"] - config.margin for row in rows]


def _corpus(config: MineConfig, positives: Mapping[str, Sequence[str]]) -> Iterable[str]:
    """Returns the texts to search in: the lines of the corpus file, or else all positives."""
    if config.corpus_file is None:
        return dict.fromkeys(text for texts in positives.values() for text in texts)
    return _lines(config.corpus_file)


def _lines(path):
    for number, line in enumerate(read_byte_lines(path), 1):
        try:
            if text := line.decode("utf-8").strip():
                yield text
        except UnicodeDecodeError:
            raise UserError(f"{path}, line {number} is not UTF-8{encoding_note(path)}.") from None


def without_equal_texts(
    rows: Iterable[dict[str, Any]], excluded: Iterable[str]
) -> list[dict[str, Any]]:
    """Removes rows with an excluded text, and rows that repeat the text of an earlier row.

    Texts that differ only in case and spaces are equal.
    """
    seen, kept = set(map(_normalized, excluded)), []
    for row in rows:
        key = _normalized(row["text"])
        if key not in seen:
            seen.add(key)
            kept.append(row)
    return kept


def _normalized(text):
    return " ".join(text.split()).casefold()
