"""The programs predict and evaluate: files and pipes in, JSON out, one line for bad input."""

import io
import json
import subprocess
import sys
import types

import keras
import pytest
from warm_python import PYTHON

import kbert
from kbert.errors import UserError
from kbert.inference.evaluation import evaluate
from kbert.inference.prediction import predict
from kbert.settings import EvaluateConfig, PredictConfig
from kbert.tasks.registry import make_task, write_task_settings
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab

WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran", "."]
BERT = {
    **{"vocab_size": 14, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2},
    **{"intermediate_size": 20, "max_position_embeddings": 16, "initializer_range": 0.5},
}
LABELS = {"num_labels": 3, "label_names": ("x", "y", "z")}
CLASSES = {
    "classify": ("BertForSequenceClassification", LABELS),
    "pair": ("BertForSequenceClassification", LABELS),
    "tag": ("BertForTokenClassification", LABELS),
    "qa": ("BertForQuestionAnswering", {}),
    "choice": ("BertForMultipleChoice", {}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Task -> folder as `finetune` leaves it; "plain" is a BERT for pretraining."""
    folder = tmp_path_factory.mktemp("models")
    write_vocab([*SPECIAL_TOKENS, *WORDS], folder / "vocab.txt")
    tokenizer = kbert.BertTokenizer(folder / "vocab.txt")
    keras.utils.set_random_seed(0)
    found = {}
    for task, (name, labels) in {**CLASSES, "plain": ("BertForPreTraining", {})}.items():
        found[task] = folder / task
        model = getattr(kbert, name)(kbert.BertConfig(**BERT, **labels))
        model.save_pretrained(found[task])
        tokenizer.save_pretrained(found[task])
        if task != "plain":
            settings = {"max_seq_length": 12, "doc_stride": 4, "max_query_length": 4}
            settings |= {"max_answer_length": 3, "null_threshold": None}
            config = types.SimpleNamespace(task=task, **settings)
            write_task_settings(found[task], make_task(config, tokenizer, LABELS["label_names"]))
    return found


@pytest.fixture
def notes():
    """What `predict` says besides."""
    return []


@pytest.fixture
def lines(folders, notes, monkeypatch, capsys):
    """Function from standard input (or a file) to the JSON lines that `predict` writes."""

    def run(model, text, **settings):
        given = io.TextIOWrapper(io.BytesIO(text if isinstance(text, bytes) else text.encode()))
        monkeypatch.setattr(sys, "stdin", given)
        predict(PredictConfig(model=str(folders[model]), **settings), notes.append)
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def test_leading_blanks_count_in_offsets(lines):
    (found,) = lines("tag", "   the cat")
    (other,) = lines("tag", "the cat")
    starts = [span["start"] for span in found["spans"]]
    assert starts == [span["start"] + 3 for span in other["spans"]]


def test_the_second_texts_of_files_are_read(lines, tmp_path, folders):
    """A model for pairs needs no flag for them."""
    path = tmp_path / "x.jsonl"
    rows = [{"sentence1": "the cat", "sentence2": other} for other in ("sat", "a dog ran")]
    path.write_text("\n".join(map(json.dumps, rows)))
    found = lines("pair", "", input_file=str(path))
    expected = kbert.Predictor.from_pretrained(folders["pair"]).classify(
        ["the cat"] * 2, ["sat", "a dog ran"]
    )
    assert found == expected and found[0] != found[1]


def test_what_a_folder_was_fine_tuned_for_is_predicted(lines, folders):
    texts = ["the cat sat.", "a dog ran on the mat"]
    predictor = kbert.Predictor.from_pretrained(folders["classify"])
    assert lines("classify", "\n".join(texts)) == predictor.classify(texts)
    predictor = kbert.Predictor.from_pretrained(folders["tag"])
    assert lines("tag", "\n".join(texts)) == [{"spans": s} for s in predictor.tag(texts)]
    (found,) = lines("qa", "the dog\tthe cat sat on a mat\n")
    assert found["text"] in "the cat sat on a mat"
    (found,) = lines("qa", "the dog\tthe cat sat on a mat\n", top_k=3, max_answer_length=1)
    assert len(found["candidates"]) == 3 and " " not in found["text"]
    (found,) = lines("choice", "the dog\tran\tsat\ta mat")
    assert found["text"] in ("ran", "sat", "a mat")


def test_methods_of_a_pretrained_folder(lines):
    (found,) = lines("plain", "the [MASK] sat", top_k=2)
    assert len(found["masks"][0]) == 2
    (found,) = lines("plain", "the [MASK] sat", targets="cat, dog")
    assert {word["token"] for word in found["masks"][0]} == {"cat", "dog"}
    (found,) = lines("plain", "the cat", method="embed", pooling="cls")
    assert len(found["embedding"]) == 12
    (found,) = lines("plain", "the cat\ta dog", method="similarity")
    assert -1 <= found["similarity"] <= 1
    (found,) = lines("plain", "the cat\ta dog", method="next_sentence", precision="mixed_bfloat16")
    assert 0 <= found["is_next"] <= 1


def test_files(lines, tmp_path):
    path, output = tmp_path / "x.csv", tmp_path / "out.jsonl"
    path.write_text('id,sentence\n1,"the cat, sat"\n2,a dog\n')
    assert lines("classify", "", input_file=str(path), output_file=str(output)) == []
    assert len(output.read_text().splitlines()) == 2
    path = tmp_path / "x.jsonl"
    path.write_text('{"question": "the dog", "context": "a dog ran"}\n')
    assert len(lines("qa", "", input_file=str(path))) == 1
    path = tmp_path / "x.txt"
    path.write_text("the cat\na dog\n")
    assert len(lines("classify", "", input_file=str(path))) == 2
    path.write_bytes("the café\nun été\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"line 1: bytes that are not UTF-8; .*iconv -f CP1252"):
        lines("classify", "", input_file=str(path))


@pytest.mark.parametrize(
    ("model", "text", "settings", "message"),
    [
        ("classify", "a\n\nb", {}, "line 2: the text is empty"),
        ("classify", b"a\n\xff\xfe\n", {}, "line 2: bytes that are not UTF-8"),
        ("qa", "the dog", {}, "line 1: answer needs 2 texts, separated by tabs; got 1"),
        ("tag", "a\tb", {}, "line 1: tag needs one text, without tabs; got 2"),
        ("choice", "a\tb", {}, "line 1: choose needs 3 or more texts, separated by tabs; got 2"),
        ("plain", "the cat", {}, "line 1: the text must have 1 to 16 [MASK]; got 0"),
        (
            "classify",
            "a\na\tb",
            {},
            "line 2: got 2 texts, separated by tabs, but the lines before have",
        ),
        (
            "classify",
            "a\tb\tc",
            {},
            "line 1: classify needs 1 to 2 texts, separated by tabs; got 3",
        ),
        ("pair", "the cat", {}, "line 1: classify needs 2 texts, separated by tabs; got 1"),
        ("choice", "a\tb\tc\na\tb\tc\td", {}, "line 2: got 4 texts"),
        (
            "plain",
            "the [MASK]",
            {"top_k": 15},
            "top_k must be 1 to 14, the vocabulary size; got 15",
        ),
        ("plain", "the cat", {"method": "tag"}, "has no token_classifier, which BertFor"),
        ("tag", "a", {"top_k": 2}, "--top_k is for fill_mask and answer; the method is tag."),
        ("qa", "a\tb", {"targets": "a"}, "--targets is for fill_mask; the method is answer."),
        (
            "classify",
            "a",
            {"allow_no_answer": False},
            "--allow_no_answer is for answer; the method is classify.",
        ),
    ],
)
def test_bad_lines(lines, model, text, settings, message):
    with pytest.raises(UserError) as caught:
        lines(model, text, **settings)
    assert message in str(caught.value)


def test_bad_lines_that_are_left_out_keep_their_place(lines, notes):
    found = lines("classify", b"the cat\n\na dog\n\xff\n", skip_bad_lines=True)
    assert notes == ["note: predictions are null for 2 skipped lines of standard input"]
    assert [row and row["label"] in "xyz" for row in found] == [True, None, True, None]


def test_a_model_is_needed():
    with pytest.raises(UserError, match=r"--model is missing"):
        PredictConfig()
    with pytest.raises(UserError, match=r"--eval_file is missing: labeled examples"):
        EvaluateConfig(model="a")


def test_scores(folders, tmp_path):
    """Equal to those of the predictions that the Predictor makes."""
    texts = ["the cat", "a dog", "the mat sat.", "the cat ran"]
    path, results = tmp_path / "x.tsv", tmp_path / "new/results.json"
    predictor = kbert.Predictor.from_pretrained(folders["classify"])
    found = [row["label"] for row in predictor.classify(texts)]
    labels = [found[0], *("z" if label != "z" else "x" for label in found[1:])]
    rows = "".join(f"{t}\t{label}\n" for t, label in zip(texts, labels, strict=True))
    path.write_text(f"text\tlabel\n{rows}")
    lines = []
    config = EvaluateConfig(
        model=str(folders["classify"]), eval_file=str(path), results_file=str(results)
    )
    scores = evaluate(config, lines.append)
    assert scores["accuracy"] == 0.25 and json.loads(results.read_text()) == scores
    assert "precision    recall" in lines[-1]


def test_folders_that_do_not_say_what_they_are_for(folders, tmp_path):
    path = tmp_path / "x.tsv"
    path.write_text("the cat\t0\na dog\t7\n")
    with pytest.raises(UserError, match=r"has no task.json, so its task is unknown. Set --task, "):
        evaluate(EvaluateConfig(model=str(folders["plain"]), eval_file=str(path)))
    with pytest.raises(UserError, match=r"plain has no sequence_classifier"):
        evaluate(EvaluateConfig(model=str(folders["plain"]), eval_file=str(path), task="classify"))
    with pytest.raises(UserError, match=r"x.tsv, line 2: the label '7' is not one of the 3"):
        evaluate(EvaluateConfig(model=str(folders["classify"]), eval_file=str(path)))


def test_texts_are_echoed(folders, tmp_path):
    (tmp_path / "x.txt").write_text("the cat\ta dog\n\na\tb\n")
    files = {"input_file": str(tmp_path / "x.txt"), "output_file": str(tmp_path / "y.jsonl")}
    settings = {"model": str(folders["classify"]), "skip_bad_lines": True, **files}
    lines = []
    for echo in (False, True):
        predict(PredictConfig(**settings, echo=echo), lambda line: None)
        lines.append([json.loads(x) for x in (tmp_path / "y.jsonl").read_text().splitlines()])
    first, second, third = lines[0]
    expected = [{"input": ["the cat", "a dog"], **first}, second, {"input": ["a", "b"], **third}]
    assert lines[1] == expected and second is None


@pytest.mark.smoke
def test_the_program_reads_a_pipe(folders):
    """Predictions on standard output, and nothing else; messages on the other."""
    command = [PYTHON, "-m", "kbert.predict", f"--model={folders['classify']}"]
    done = subprocess.run(command, input=b"the cat\na dog\n", capture_output=True)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["label"] in "xyz" for line in done.stdout.splitlines()] == [True] * 2
    done = subprocess.run(command, input=b"the cat\n\n", capture_output=True, text=False)
    assert done.returncode == 2
    assert done.stderr.decode().splitlines()[-1] == (
        "error: standard input, line 2: the text is empty. Fix it, or write null for such lines "
        "with --skip_bad_lines."
    )
