"""Loads or creates the inputs of a pretraining run: vocabulary, corpora and architecture."""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kbert.config import BertConfig
from kbert.corpus import Corpus, prepare
from kbert.corpus.corpus import is_prepared
from kbert.corpus.preparation import input_stamps
from kbert.corpus.text_sources import Texts, find_inputs
from kbert.errors import UserError
from kbert.model.folder import ModelFolder
from kbert.tokenizer import BertTokenizer, learn_vocab
from kbert.tokenizer.files import TokenizerSettings
from kbert.tokenizer.vocab import size_note

if TYPE_CHECKING:
    from kbert.settings import PretrainConfig


def load_or_create_inputs(
    config: "PretrainConfig",
    folder: str | os.PathLike[str],
    saved: str | os.PathLike[str] | None,
    layers: Sequence[int] | None,
    check: Callable[[BertConfig, BertTokenizer], None],
    report: Callable[[str], None],
    may_write: bool = True,
) -> tuple[BertConfig, BertTokenizer, Corpus, Corpus | None]:
    """Loads or creates the architecture, the vocabulary, and the training and held-out corpora.

    Args:
        folder: `OUTPUT_DIR/data`, to which the vocabulary and the corpora prepared from text are
            written, so that the run can resume.
        saved: folder of the verified checkpoint that the run resumes from, or None.
        layers: numbers of the encoder blocks of `init_from` to use, from 1; None for all.
        check: called with the architecture and the tokenizer before text is prepared.
        report: called with each progress line.
        may_write: whether to write to `folder`. False for workers other than the chief, which read
            the files that the chief has written.

    Raises:
        UserError: the inputs cannot be used or contradict each other, or `check` raises it.
    """
    folder = pathlib.Path(folder)
    if saved:
        tokenizer = ModelFolder(saved).tokenizer
        _check_vocabulary(config, tokenizer)
    elif not may_write:
        tokenizer = BertTokenizer.from_pretrained(folder)
    else:
        tokenizer = _tokenizer(config, report)
    if config.lower_case not in (None, tokenizer.lower_case):
        raise UserError(
            f"--lower_case={str(config.lower_case).lower()}, but the checkpoint, the corpus or "
            f"--init_from has {str(tokenizer.lower_case).lower()}. Remove the flag."
        )
    bert_config = _bert_config(config, saved, tokenizer, layers)
    check(bert_config, tokenizer)
    shared = (tokenizer, report, may_write)
    corpus = _corpus(config, config.input, folder / "train", *shared)
    eval_corpus = None
    if config.eval_input:
        eval_corpus = _corpus(config, config.eval_input, folder / "eval", *shared)
    if may_write:
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save_pretrained(folder)
    return bert_config, tokenizer, corpus, eval_corpus


def _check_vocabulary(config, tokenizer):
    if not config.vocab_file:
        return
    requested = BertTokenizer(config.vocab_file, **tokenizer.settings)
    if requested.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"--vocab_file={config.vocab_file} differs from the checkpoint's vocabulary. Remove "
            f"the flag, or use another --output_dir."
        )


def _tokenizer(config, report):
    lower_case = config.lower_case is not False
    if is_prepared(config.input):
        corpus = Corpus(config.input, verify=False)
        casing = corpus.manifest["lower_case"]
        tokenizer = BertTokenizer.from_pretrained(corpus.folder, lower_case=casing)
        if config.vocab_file:
            tokenizer = BertTokenizer(config.vocab_file, **tokenizer.settings)
    elif config.vocab_file:
        settings: TokenizerSettings = {"lower_case": lower_case}
        if config.init_from and config.lower_case is None:
            settings = ModelFolder(config.init_from).tokenizer.settings
        tokenizer = BertTokenizer(config.vocab_file, **settings)
    elif config.init_from or config.teacher:
        tokenizer = ModelFolder(config.init_from or config.teacher).tokenizer
    else:
        report(f"learning a vocabulary of {config.vocab_size:,} entries from {config.input}")
        texts = Texts(find_inputs(config.input))
        vocab = learn_vocab(texts, config.vocab_size, lower_case)
        if note := size_note(vocab, config.vocab_size):
            report(note)
        tokenizer = BertTokenizer(vocab, lower_case)
    for folder in filter(None, (config.init_from, config.teacher)):
        known = ModelFolder(folder).tokenizer
        extends = folder == config.init_from and tokenizer.extends(known)
        if known.fingerprint != tokenizer.fingerprint and not extends:
            raise UserError(
                f"the vocabulary or casing differs from {folder}, so the token ids do not match "
                f"its weights. Remove --vocab_file, extend its vocabulary with kbert.learn_vocab "
                f"--extend, or prepare the text again with --vocab_file={folder}/vocab.txt"
            )
    return tokenizer


def _corpus(config, inputs, folder, tokenizer, report, may_write):
    if is_prepared(inputs):
        corpus = Corpus(inputs)
    elif not may_write:
        corpus = Corpus(folder)
    else:
        stamps = input_stamps(find_inputs(inputs))
        corpus = Corpus(folder) if is_prepared(folder) else None
        fresh = corpus is None or (
            corpus.manifest.get("inputs") != stamps
            or corpus.manifest["vocab_fingerprint"] != tokenizer.fingerprint
        )
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
            report(f"preparing {inputs}, once; it is kept in {folder}")
            options = {"report": report, "single_document": not config.next_sentence}
            corpus = prepare(inputs, folder, tokenizer, **options)
    corpus.check_tokenizer(tokenizer)
    return corpus


def _requested_config(config, tokenizer):
    """Returns the architecture that --bert_config and --dropout specify."""
    bert_config = BertConfig.load(config.bert_config or "base", tokenizer.vocab_size)
    return _with_dropout(bert_config, config)


def _with_dropout(bert_config, config):
    if config.dropout is None:
        return bert_config
    names = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    return dataclasses.replace(bert_config, **dict.fromkeys(names, config.dropout))


def _bert_config(config, saved, tokenizer, layers):
    origin = "the checkpoint" if saved else config.init_from
    if saved:
        bert_config = ModelFolder(saved).config
    elif config.init_from:
        folder = ModelFolder(config.init_from, tokenizer.vocab)
        with folder.open_weights(layers=layers) as (bert_config, _):
            bert_config = _with_dropout(bert_config, config)
    else:
        bert_config = _requested_config(config, tokenizer)
    if origin and config.bert_config:
        requested = _requested_config(config, tokenizer).to_dict()
        for name, value in bert_config.to_dict().items():
            if requested[name] != value:
                raise UserError(
                    f"--bert_config={config.bert_config} has {name} {requested[name]}, but "
                    f"{origin} has {value}. Remove the flag, or use another --output_dir."
                )
    if bert_config.vocab_size < tokenizer.vocab_size:
        raise UserError(
            f"the vocabulary has {tokenizer.vocab_size} entries, but the architecture has "
            f"vocab_size {bert_config.vocab_size}."
        )
    if config.next_sentence and bert_config.type_vocab_size < 2:
        raise UserError(
            f"type_vocab_size must be at least 2, because next sentence prediction uses two "
            f"segments; got {bert_config.type_vocab_size}. Set --next_sentence=false to train "
            f"without it."
        )
    if config.max_seq_length > bert_config.max_position_embeddings:
        raise UserError(
            f"max_seq_length must be at most max_position_embeddings; got {config.max_seq_length} "
            f"and {bert_config.max_position_embeddings}."
        )
    return bert_config
