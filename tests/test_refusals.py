"""A command that is rejected leaves no file, whatever is wrong and however late it is noticed."""

import json
import os
import pathlib

import pytest
from absl import flags as absl_flags

from kbert import attention, learn_vocab
from kbert.compression.head_pruning import prune
from kbert.corpus.preparation import write_corpus
from kbert.errors import UserError
from kbert.inference.evaluation import evaluate
from kbert.inference.prediction import predict
from kbert.model.conversion import convert
from kbert.serving.export import export_as
from kbert.settings import (
    DistillConfig,
    EvaluateConfig,
    ExportConfig,
    FinetuneConfig,
    LearnVocabConfig,
    PredictConfig,
    PrepareConfig,
    PretrainConfig,
    PruneConfig,
)
from kbert.train import distill, finetune, pretrain

TEXT = "the cat sat on a mat .\n"
FILES = {
    "text.txt": f"{TEXT}\n{TEXT}",
    "one.txt": TEXT,
    "bad.jsonl": '{"title": "no text"}\n{"text": "the cat"}\n',
    "labels.tsv": "the cat\tno\na dog\tyes\nthe mat\tperhaps\n",
    "empty.tsv": "text\tlabel\n\tno\na dog\tyes\n",
    "unknown.tsv": "the cat\tno\na dog\todd\n",
    "bad.conll": "cat\nran\n",
    "bad.json": '{"data": [{"paragraphs": [{"qas": [{"question": 1}]}]}]}',
    "empty.txt": "\nthe cat\n",
    "small.yaml": (
        "num_hidden_layers: 1\nhidden_size: 8\nnum_attention_heads: 1\nintermediate_size: 8\n"
        "max_position_embeddings: 8\n"
    ),
}


def of_run(program, config_class, **settings):
    return lambda out, files: program(config_class(**formatted(settings, files)), f"{out}/run")


def of_output(program, config_class, output, **settings):
    return lambda out, files: program(
        config_class(**formatted(settings, files), **{output: f"{out}/folder/output"}),
        report=lambda line: None,
    )


def formatted(settings, files):
    return {n: v.format(**files) if isinstance(v, str) else v for n, v in settings.items()}


def finetuned(**changes):
    good = {"task": "classify", "init_from": "{classify}", "train_file": "{labels_tsv}"}
    return of_run(finetune, FinetuneConfig, **good | {"max_seq_length": 16} | changes)


def pretrained(**changes):
    good = {"input": "{text_txt}", "bert_config": "{small_yaml}", "vocab_size": 40}
    good |= {"max_seq_length": 8, "global_batch_size": 2, "train_steps": 2, "warmup_steps": 0}
    return of_run(pretrain, PretrainConfig, **good | changes)


def distilled(**changes):
    good = {"task": "classify", "teacher": "{classify}", "train_file": "{labels_tsv}"}
    return of_run(distill, DistillConfig, **good | {"max_seq_length": 16} | changes)


def learnt(out, files):
    config = LearnVocabConfig(input=files["bad_jsonl"], output_file=f"{out}/new/vocab.txt")
    learn_vocab.main(config)


def looked_at(out, files):
    values = {"model": files["classify"], "text": "the cat", "text_pair": None, "head": "all"}
    names = absl_flags.FlagValues()
    for name, value in (values | {"layer": "9", "output_dir": f"{out}/new"}).items():
        absl_flags.DEFINE_string(name, value, "", flag_values=names)
    names.mark_as_parsed()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention.absl_flags, "FLAGS", names)
        attention.main()


def pruned(**changes):
    good = {"model": "{classify}", "data_file": "{labels_tsv}"}
    return of_output(prune, PruneConfig, "output_dir", **good | changes)


def exported(**changes):
    settings = {"model": "{classify}"} | changes
    return of_output(
        lambda config, report: export_as(config), ExportConfig, "output_dir", **settings
    )


REFUSED = {
    "learn_vocab: bad line": (learnt, "line 1"),
    "prepare: bad line": (
        of_output(
            write_corpus, PrepareConfig, "output_dir", input="{bad_jsonl}", vocab_file="{vocab}"
        ),
        "line 1",
    ),
    "prepare: one document": (
        of_output(
            write_corpus, PrepareConfig, "output_dir", input="{one_txt}", vocab_file="{vocab}"
        ),
        "is a single document",
    ),
    "prepare: missing vocabulary": (
        of_output(write_corpus, PrepareConfig, "output_dir", input="{text_txt}", vocab_file="/no"),
        "cannot read .*/no: No such file",
    ),
    "pretrain: bad line": (pretrained(input="{bad_jsonl}"), "line 1"),
    "pretrain: one document": (pretrained(input="{one_txt}"), "is a single document"),
    "pretrain: too long": (pretrained(max_seq_length=9), "max_seq_length must be at most"),
    "pretrain: missing model": (pretrained(init_from="/no", bert_config=None), "no folder /no"),
    "pretrain: batch": (pretrained(accumulation_steps=4), "the batch size must be divisible"),
    "finetune: empty text": (finetuned(train_file="{empty_tsv}"), "line 2: the text is empty"),
    "finetune: missing file": (finetuned(eval_file="/no.tsv"), "cannot read /no.tsv"),
    "finetune: missing model": (finetuned(init_from="/no"), "there is no folder /no"),
    "finetune: wrong task": (finetuned(task="qa", train_file="{bad_json}"), "bad.json"),
    "finetune: no tag": (finetuned(task="tag", train_file="{bad_conll}"), "bad.conll, line 1"),
    "finetune: unknown task": (finetuned(task="klassify"), "task must be one of"),
    "finetune: unknown label": (
        finetuned(test_file="{unknown_tsv}", label_names="no,yes,perhaps"),
        r"unknown labels: odd \(1\)",
    ),
    "finetune: metric": (
        finetuned(eval_file="{labels_tsv}", best_metric="acuracy"),
        "best_metric must be one of accuracy",
    ),
    "finetune: too long": (finetuned(max_seq_length=99), "max_seq_length must be at most 32"),
    "finetune: no split": (
        finetuned(eval_fraction=0.01),
        "=0.01 would move 0 of the 3",
    ),
    "finetune: no folds": (finetuned(folds=50), "--folds=50 would move 0 of the 3"),
    "finetune: layers": (finetuned(freeze_layers=9), "layers to freeze must be 0 to 2"),
    "distill: empty text": (distilled(train_file="{empty_tsv}"), "line 2: the text is empty"),
    "distill: unknown label": (distilled(train_file="{unknown_tsv}"), "the label 'odd' is not"),
    "distill: layers": (distilled(student_layers="9"), "student_layers"),
    "evaluate: unknown label": (
        of_output(
            evaluate, EvaluateConfig, "results_file", model="{classify}", eval_file="{unknown_tsv}"
        ),
        r"unknown labels: odd \(1\)",
    ),
    "evaluate: wrong task": (
        of_output(
            *(evaluate, EvaluateConfig, "results_file"),
            **{"model": "{classify}", "task": "qa", "eval_file": "{bad_json}"},
        ),
        "has no span_classifier",
    ),
    "predict: empty text": (
        lambda out, files: predict(
            PredictConfig(
                model=files["classify"], input_file=files["empty_txt"], output_file=f"{out}/x.jsonl"
            )
        ),
        "empty.txt, line 1: the text is empty",
    ),
    "prune: unknown label": (pruned(data_file="{unknown_tsv}"), "the label 'odd' is not one"),
    "prune: fraction": (pruned(prune_fraction=0.99), "prune_fraction"),
    "export: method": (exported(method="answer"), "has no span_classifier"),
    "export: eval file": (exported(eval_file="{unknown_tsv}"), "the label 'odd' is not one"),
    "export: tf_hub": (exported(format="tf_hub", max_seq_length=99), "max_seq_length"),
    "convert: no weights": (
        lambda out, files: convert(files["data"], f"{out}/new/folder", "hf"),
        "contains no weights",
    ),
    "attention: layer": (looked_at, "layer"),
}


def test_refused_commands_leave_no_file(folders, tmp_path, capsys):
    files = {"classify": str(folders["classify"]), "vocab": str(folders["classify"] / "vocab.txt")}
    data = tmp_path / "data"
    data.mkdir()
    files["data"] = str(data)
    for name, text in FILES.items():
        (data / name).write_text(text)
        files[name.replace(".", "_")] = str(data / name)
    out, wrong = tmp_path / "out", {}
    out.mkdir()
    for name, (command, message) in REFUSED.items():
        try:
            with pytest.raises(UserError, match=message):
                command(out, files)
        except BaseException as error:
            wrong[name] = f"{type(error).__name__}: {error}"[:300]
        left = [str(path.relative_to(out)) for path in out.rglob("*")]
        if left:
            wrong[f"{name} leaves"] = left
            for path in sorted(out.rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
    assert not wrong, json.dumps(wrong, indent=1)
    assert sorted(os.listdir(data)) == sorted(FILES)


def test_an_earlier_output_survives_a_refused_command(folders, tmp_path):
    """Also a folder of the user's with other files."""
    out, texts = tmp_path / "out.jsonl", tmp_path / "texts.txt"
    out.write_text("earlier\n")
    texts.write_text("the cat\n\n")
    config = {"model": str(folders["classify"]), "input_file": str(texts), "output_file": str(out)}
    with pytest.raises(UserError, match=r"texts\.txt, line 2: the text is empty"):
        predict(PredictConfig(**config))
    assert out.read_text() == "earlier\n" and len(os.listdir(tmp_path)) == 2
    settings = {"task": "classify", "init_from": config["model"], "train_file": "/no.tsv"}
    with pytest.raises(UserError, match=r"cannot read /no\.tsv"):
        finetune(FinetuneConfig(**settings), tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["out.jsonl", "texts.txt"]
    os.mkfifo(tmp_path / "pipe")  # a special file is written to, not replaced
    texts.write_text("the cat\n")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    predict(PredictConfig(**config | {"output_file": str(tmp_path / "pipe")}))
    assert json.loads(os.read(reader, 1 << 16))["label"]
    os.close(reader)
    assert pathlib.Path(tmp_path / "pipe").is_fifo()
