"""What a run starts from: vocabulary, corpora and architecture, found or made."""

import dataclasses
import os
import pathlib
import shutil

from kbert.config import BertConfig
from kbert.data import BertTokenizer, Corpus, learn_vocab, prepare
from kbert.data.corpus import Texts, find_inputs
from kbert.data.preparation import input_stamps
from kbert.data.store import MANIFEST
from kbert.data.vocab import write_vocab
from kbert.errors import UserError
from kbert.model.weights import open_weights


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What training needs besides its settings."""

    bert_config: BertConfig
    tokenizer: BertTokenizer
    corpus: Corpus
    eval_corpus: Corpus | None


def check_inputs(config):
    """Refuses what can be refused at once, before anything slow.

    Raises:
        UserError: no such text, an architecture or a vocabulary that cannot be read.
    """
    found = [
        {os.path.abspath(inputs)} if _is_prepared(inputs) else set(find_inputs(inputs))
        for inputs in filter(None, (config.input, config.eval_input))
    ]
    both = set.intersection(*found) if len(found) == 2 else ()
    if both:
        raise UserError(
            f"{min(both)} is in --input and in --eval_input; what is learnt from cannot be held "
            f"out. Leave it out of one."
        )
    if config.bert_config:
        BertConfig.load(config.bert_config, vocab_size=5)


def find_or_make(config, folder, saved_config, report):
    """Finds or makes vocabulary and corpora, in `folder` where they are not given.

    Args:
        config: PretrainConfig.
        folder: `OUTPUT_DIR/data`, for what is made from plain text: once, then taken again.
        saved_config: BertConfig of the checkpoint that the run goes on from, or None.
        report: called with a line of text.

    Returns:
        Inputs.

    Raises:
        UserError: inputs that cannot be used, or that contradict each other.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if saved_config:
        tokenizer = BertTokenizer.from_pretrained(folder)
    else:
        tokenizer = _tokenizer(config, folder, report)
        tokenizer.save_pretrained(folder)
    if config.lower_case not in (None, tokenizer.lower_case):
        raise UserError(
            f"--lower_case={str(config.lower_case).lower()}, but the checkpoint, the corpus or "
            f"--init_from has {str(tokenizer.lower_case).lower()}. Leave the flag out."
        )
    bert_config = _bert_config(config, saved_config, tokenizer)
    corpus = _corpus(config.input, folder / "train", tokenizer, report)
    eval_corpus = None
    if config.eval_input:
        eval_corpus = _corpus(config.eval_input, folder / "eval", tokenizer, report)
    return Inputs(bert_config, tokenizer, corpus, eval_corpus)


def _is_prepared(inputs):
    return os.path.isfile(os.path.join(inputs, MANIFEST))


def _tokenizer(config, folder, report):
    lower_case = config.lower_case is not False
    if _is_prepared(config.input):
        corpus = Corpus(config.input, verify=False)
        theirs = corpus.manifest["lower_case"]
        tokenizer = BertTokenizer.from_pretrained(corpus.folder, lower_case=theirs)
        if config.vocab_file:
            tokenizer = BertTokenizer(config.vocab_file, **tokenizer.settings)
    elif config.vocab_file:
        tokenizer = BertTokenizer(config.vocab_file, lower_case)
    elif config.init_from:
        tokenizer = BertTokenizer.from_pretrained(config.init_from)
    else:
        report(f"learning a vocabulary of {config.vocab_size:,} entries from {config.input}")
        texts = Texts(find_inputs(config.input))
        path = folder / "vocab.txt"
        write_vocab(learn_vocab(texts, config.vocab_size, lower_case), path)
        tokenizer = BertTokenizer(path, lower_case)
    if config.init_from:
        theirs = BertTokenizer.from_pretrained(config.init_from)
        if theirs.fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"the vocabulary or casing differs from that of {config.init_from}, so its weights "
                f"would mean other words. Leave out --vocab_file, or prepare the text again with "
                f"--vocab_file={config.init_from}/vocab.txt"
            )
    return tokenizer


def _corpus(inputs, folder, tokenizer, report):
    if _is_prepared(inputs):
        corpus = Corpus(inputs)
    else:
        stamps = input_stamps(find_inputs(inputs))
        corpus = Corpus(folder) if _is_prepared(folder) else None
        fresh = corpus is None or (
            corpus.manifest["inputs"] != stamps
            or corpus.manifest["vocab_fingerprint"] != tokenizer.fingerprint
        )
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
            report(f"preparing {inputs}, once; it is kept in {folder}")
            corpus = prepare(inputs, folder, tokenizer, report=report)
    corpus.check_tokenizer(tokenizer)
    return corpus


def _bert_config(config, saved_config, tokenizer):
    origin = None
    if saved_config:
        bert_config, origin = saved_config, "the checkpoint"
    elif config.init_from:
        with open_weights(config.init_from) as (bert_config, _):
            origin = config.init_from
    else:
        bert_config = BertConfig.load(config.bert_config or "base", tokenizer.vocab_size)
    if origin and config.bert_config:
        asked = BertConfig.load(config.bert_config, tokenizer.vocab_size).to_dict()
        for name, value in bert_config.to_dict().items():
            if asked[name] != value:
                raise UserError(
                    f"--bert_config={config.bert_config} has {name} {asked[name]}, but {origin} "
                    f"has {value}. Leave the flag out, or take another --output_dir."
                )
    if bert_config.vocab_size < tokenizer.vocab_size:
        raise UserError(
            f"the vocabulary has {tokenizer.vocab_size} entries, but the architecture has "
            f"vocab_size {bert_config.vocab_size}."
        )
    if bert_config.type_vocab_size < 2:
        raise UserError(
            f"pretraining has two segments; type_vocab_size must be at least 2, got "
            f"{bert_config.type_vocab_size}."
        )
    if config.max_seq_length > bert_config.max_position_embeddings:
        raise UserError(
            f"max_seq_length must be at most max_position_embeddings; got {config.max_seq_length} "
            f"and {bert_config.max_position_embeddings}."
        )
    return bert_config
