"""`python -m kbert.attention`: weights against HF, and what the page and the picture hold."""

import base64
import html.parser
import json
import re
import shutil
import subprocess
import types
import warnings

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from test_weights import config_of, hf_made, made
from warm_python import PYTHON

import kbert
from kbert import BertTokenizer
from kbert import attention as attention_program
from kbert.errors import UserError
from kbert.tokenizer.vocab import SPECIAL_TOKENS, write_vocab
from kbert.visualization.attention import attention_weights, write_attention
from kbert.visualization.attention_page import attention_page

N, H = 2, 3  # of the models of test_weights
WORDS = ["the", "cat", "sat", "##s", "<", ">", "/", "script", "."]
TOLERANCE = 1e-5  # float32, and another library's order of additions


@pytest.fixture
def folder(tmp_path):
    """A folder of HF: a model of 2 layers, 3 heads, at most 13 tokens, and its tokenizer."""
    path = tmp_path / "hf"
    hf_made("BertModel").save_pretrained(path)
    write_vocab([*SPECIAL_TOKENS, *WORDS], path / "vocab.txt")
    return path


@pytest.fixture
def tokenizer(folder):
    return BertTokenizer.from_pretrained(folder, special_tokens_in_text=True)


class Page(html.parser.HTMLParser):
    """What a browser would see: tags, scripts, and text by tag."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self._open = [], {}, None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self._open = attrs.get("id", tag)

    def handle_data(self, data):
        self.texts.setdefault(self._open, data)

    def weights(self):
        data = json.loads(self.texts["data"])
        L = len(data["tokens"])
        maps = [
            [np.frombuffer(base64.b64decode(head), "<u2").reshape(L, L) for head in layer]
            for layer in data["maps"]
        ]
        return data["tokens"], np.array(maps) / 10 ** data["decimals"]


def attention(*shape):
    weights = np.exp(2 * np.random.default_rng(0).normal(size=shape))
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("pair", [None, "the cat."])
def test_weights_equal_hf(pair, folder, tokenizer):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*are randomly initialized")
        tokens, weights = attention_weights(folder, tokenizer, "The cats [MASK] dog", pair)
    expected = ["[CLS]", "the", "cat", "##s", "[MASK]", "[UNK]", "[SEP]"]
    segments = [0] * len(expected)
    if pair:
        expected += ["the", "cat", ".", "[SEP]"]
        segments += [1] * 4
    assert tokens == expected
    hf = transformers.BertModel.from_pretrained(folder, attn_implementation="eager")
    ids = torch.tensor([[tokenizer.vocab.index(token) for token in tokens]])
    with torch.no_grad():
        outputs = hf(ids, token_type_ids=torch.tensor([segments]), output_attentions=True)
    assert weights.dtype == np.float32 and weights.shape == (N, H, len(tokens), len(tokens))
    for found, theirs in zip(weights, outputs.attentions, strict=True):
        np.testing.assert_allclose(found, theirs[0].numpy(), atol=TOLERANCE)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=TOLERANCE)
    assert weights.std() > 100 * TOLERANCE  # and not all alike


def test_a_model_that_is_there_already(folder, tokenizer):
    _, expected = attention_weights(folder, tokenizer, "cat")
    model = kbert.BertModel.from_pretrained(folder, output_attentions=True)
    tokens, weights = attention_weights(model, tokenizer, "cat")
    assert tokens == ["[CLS]", "cat", "[SEP]"]  # fewer than the tokenizer pads to
    np.testing.assert_array_equal(weights, expected)
    headed = kbert.BertForSequenceClassification(config_of(), output_attentions=True)
    assert attention_weights(headed, tokenizer, "cat")[1].shape == (N, H, 3, 3)


def test_long_text_is_cut_with_a_note(folder, tokenizer):
    lines = []
    tokens, weights = attention_weights(folder, tokenizer, "cat " * 12, report=lines.append)
    assert tokens == ["[CLS]", *["cat"] * 11, "[SEP]"] and weights.shape[-1] == 13
    assert lines == ["note: the text has 14 tokens; truncated to the limit of the model, 13"]
    lines.clear()
    attention_weights(folder, tokenizer, "cat " * 6, "cat " * 4, report=lines.append)
    assert lines == []  # 13, just so
    tokens, weights = attention_weights(
        folder, tokenizer, "cat " * 6, report=lines.append, max_length=6
    )
    assert tokens == ["[CLS]", *["cat"] * 4, "[SEP]"] and weights.shape[-1] == 6
    assert lines == ["note: the text has 8 tokens; truncated to max_length, 6"]
    for length in (4, 0):
        with pytest.raises(UserError, match=f"^max_length must be at least 5; got {length}.$"):
            attention_weights(folder, tokenizer, "cat", max_length=length)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ((" \n",), r"text is empty: got ' \\n'. It must contain at least one token."),
        (("cat", ""), "text_pair is empty: got ''. It must contain at least one token."),
    ],
)
def test_empty_text(texts, message, folder, tokenizer):
    with pytest.raises(UserError, match=f"^{message}$"):
        attention_weights(folder, tokenizer, *texts)


def test_models_that_cannot_be_shown(tmp_path, tokenizer):
    with pytest.raises(
        UserError, match=r"returns no attention weights. Create it with output_attentions=True"
    ):
        attention_weights(made("BertModel"), tokenizer, "cat")
    small = kbert.BertModel(config_of(vocab_size=11), output_attentions=True)
    with pytest.raises(
        UserError, match=r"tokenizer has 14 entries, but the model has vocab_size 11. Use the"
    ):
        attention_weights(small, tokenizer, "cat")
    one = kbert.BertModel(config_of(type_vocab_size=1), output_attentions=True)
    with pytest.raises(UserError, match=r"has a single segment type .*, so text_pair must be None"):
        attention_weights(one, tokenizer, "cat", "cat")
    with pytest.raises(UserError, match="there is no folder /no/such"):
        attention_weights("/no/such", tokenizer, "cat")


def test_the_page_holds_the_weights():
    tokens = ["[CLS]", "</script><script>alert(1)</script>", "<!--", "&lt;", "\u2028", "好", '"']
    weights = attention(N, H, len(tokens), len(tokens))
    text = attention_page(tokens, weights, "Attention of <b>&")
    page = Page(text)
    found, numbers = page.weights()
    assert found == tokens
    np.testing.assert_allclose(numbers, weights, atol=0.5e-4 * (1 + 1e-3))
    assert page.texts["title"] == page.texts["h1"] == "Attention of <b>&"
    scripts = [attrs for tag, attrs in page.tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}, {}]
    assert "b" not in {tag for tag, _ in page.tags} and text.count("</script>") == 2


def test_the_page_asks_nothing_of_a_network():
    page = attention_page(["a", "b"], attention(1, 1, 2, 2), "title")
    addresses = re.findall(r"\w+://[^\s\"']*", page)
    assert set(addresses) == {"http://www.w3.org/2000/svg"}  # a name, which nothing is read from
    assert not {"src", "href", "action"} & {name for _, attrs in Page(page).tags for name in attrs}
    assert "default-src 'none'" in page


def test_the_page_can_be_read_aloud():
    page = Page(attention_page(["a", "b"], attention(1, 1, 2, 2), "title"))
    assert ("html", {"lang": "en"}) in page.tags
    by_id = {attrs["id"]: (tag, attrs) for tag, attrs in page.tags if "id" in attrs}
    assert by_id["status"][1]["aria-live"] == "polite"
    assert all(attrs["aria-label"] for tag, attrs in by_id.values() if tag == "svg")
    wanted = set(re.findall(r'byId\("([\w-]+)"\)', page.texts["script"]))
    assert wanted and wanted <= by_id.keys()


# A document that has what the page's script uses, to run it without a browser.
STUB = r"""
const node = () => ({ attributes: {}, children: [], listeners: {}, style: {}, value: "",
  classList: { toggle() {} }, textContent: "", hidden: false, checked: false,
  setAttribute(name, value) { this.attributes[name] = value; },
  append(child) { this.children.push(child); },
  replaceChildren() { this.children = []; }, clientWidth: 0,
  addEventListener(name, call) { this.listeners[name] = call; },
  getContext() { return { createImageData: (w, h) => ({ data: Array(4 * w * h) }),
    putImageData(image) { globalThis.pixels = image.data; } }; },
  toDataURL: () => "data:," });
const nodes = {};
globalThis.window = { addEventListener() {} };
globalThis.innerHeight = 900;
globalThis.matchMedia = () => ({ addEventListener() {} });
globalThis.getComputedStyle = () => ({ getPropertyValue: () => " 8 48 107" });
globalThis.document = { createElement: node, createElementNS: node, addEventListener() {},
  getElementById: (id) => nodes[id] ??= node() };
document.getElementById("data").textContent = require("fs").readFileSync(0, "utf8");
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_script_of_the_page(tmp_path):
    L = 7
    weights = attention(N, H, L, L)
    page = Page(attention_page([f"t{i}" for i in range(L)], weights, "title"))
    end = """
    const seen = [];
    const note = () => seen.push(document.getElementById("status").textContent);
    note(); state.layer = 1; state.head = 2; draw(); choose("from", 3); note();
    const count = lines.children.length;
    choose("at", 0); note(); keep("at", 0); choose(null, null); note();
    state.head = "mean"; byId("as-map").checked = true; draw(); point(4, 5); note();
    console.log(JSON.stringify({ seen, count, mean: Array.from(weights),
      dark: (pixels.indexOf(255) - 3) / 4,
      colour: pixels.slice(0, 3) }));
    """
    script = tmp_path / "page.js"
    script.write_text(STUB + page.texts["script"] + end)
    subprocess.run(["node", "--check", script], check=True)
    done = subprocess.run(
        ["node", script], input=page.texts["data"], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    from_3, at_0, mean = weights[1, 2, 3], weights[1, 2, :, 0], weights[1].mean(axis=0)

    def three(values):
        return ", ".join(f"t{i} ({i}) {values[i]:.3f}" for i in np.argsort(-values)[:3])

    assert found["seen"] == [
        "Layer 0, head 0: the 5 largest weights of each token; no token is selected.",
        f"Layer 1, head 2: t3 (3) attends to {three(from_3.round(4))}.",
        f"Layer 1, head 2: t0 (0) is attended to by {three(at_0.round(4))}.",
        f"Layer 1, head 2: t0 (0) is attended to by {three(at_0.round(4))}.",
        f"Layer 1, mean of the heads: t4 (4) attends to t5 (5): {found['mean'][4 * L + 5]:.4f}.",
    ]
    assert found["count"] == L
    np.testing.assert_allclose(np.reshape(found["mean"], (L, L)), mean, atol=0.5e-4 * (1 + 1e-3))
    assert found["dark"] == mean.argmax() and found["colour"] == [8, 48, 107]


def test_files(tmp_path):
    tokens, lines = ["[CLS]", "the", "cat", "[SEP]"], []
    weights = attention(N, H, 4, 4)
    write_attention(tmp_path / "a/b", tokens, weights, name="bert", report=lines.append)
    page = tmp_path / "a/b/attention.html"
    assert lines[0].startswith(
        f"{tmp_path}/a/b/attention.png: layer 0 to layer 1, head 0 to head 2"
    )
    assert lines[1] == (
        f"{page}: 2 layers of 3 heads, 4 tokens, weights to 4 decimals; 0.0 MB. "
        f"Open it in a browser"
    )
    title = Page(page.read_text(encoding="utf-8")).texts["title"]
    assert title == "Attention of bert: 2 layers of 3 heads, 4 tokens"
    with PIL.Image.open(tmp_path / "a/b/attention.png") as image:
        width, height = image.size
    assert 3 * 120 < width < 700 and 2 * 120 < height < 500


@pytest.mark.parametrize(
    ("layer", "head", "rows", "columns"),
    [
        ("1", "2", None, None),
        ("1", "all", ["layer 1"], ["head 0", "head 1", "head 2"]),
        ("all", "2", ["layer 0", "layer 1"], ["head 2"]),
        ("all", "mean", ["layer 0", "layer 1"], ["mean of heads"]),
        ("0", "mean", None, None),
    ],
)
def test_what_is_in_the_picture(layer, head, rows, columns, tmp_path, monkeypatch):
    seen = []
    pictures = "kbert.visualization.plots"
    monkeypatch.setattr(f"{pictures}.plot_attention", lambda *args: seen.extend(args))
    monkeypatch.setattr(f"{pictures}.plot_attention_grid", lambda *args: seen.extend(args))
    (tmp_path / "attention.png").write_bytes(b"")
    weights = attention(N, H, 4, 4)
    write_attention(tmp_path, list("abcd"), weights, layer, head, report=lambda line: None)
    layers = range(N) if layer == "all" else [int(layer)]
    expected = weights[list(layers)]
    if head == "mean":
        expected = expected.mean(axis=1, keepdims=True)
    elif head != "all":
        expected = expected[:, [int(head)]]
    if rows is None:
        np.testing.assert_array_equal(seen[2], expected[0, 0])
        name = "mean of heads" if head == "mean" else f"head {head}"
        assert seen[3] == f"Attention: layer {layer}, {name}"
    else:
        np.testing.assert_array_equal(seen[2], expected)
        assert seen[1] == list("abcd") and seen[4:] == [rows, columns]
    # the page has all, whatever the picture shows
    assert Page((tmp_path / "attention.html").read_text()).weights()[1].shape == (N, H, 4, 4)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"layer": "2"}, "--layer must be all, or a number from 0 to 1; got '2'."),
        ({"layer": "mean"}, "--layer must be all, or a number from 0 to 1; got 'mean'."),
        ({"head": "-1"}, "--head must be all or mean, or a number from 0 to 2; got '-1'."),
        ({"head": "3"}, "--head must be all or mean, or a number from 0 to 2; got '3'."),
    ],
)
def test_no_such_layer_or_head(chosen, message, tmp_path):
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        write_attention(tmp_path / "new", list("abcd"), attention(N, H, 4, 4), **chosen)
    assert not (tmp_path / "new").exists()


def run(*flags):
    command = [PYTHON, "-m", "kbert.attention", *flags]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_program(folder, tmp_path):
    text = "--text=The cat <script> sat [MASK]"
    out = tmp_path / "out"
    done = run(f"--model={folder}", text, "--text_pair=cats", "--layer=1", f"--output_dir={out}")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{out}/attention.png: layer 1, head 0 to head 2; ")
    assert second.startswith(f"{out}/attention.html: 2 layers of 3 heads, 12 tokens, ")
    page = Page((out / "attention.html").read_text(encoding="utf-8"))
    tokens, weights = page.weights()
    assert tokens[1:8] == ["the", "cat", "<", "script", ">", "sat", "[MASK]"]
    tokenizer = BertTokenizer.from_pretrained(folder, special_tokens_in_text=True)
    _, expected = attention_weights(folder, tokenizer, text.removeprefix("--text="), "cats")
    np.testing.assert_allclose(weights, expected, atol=0.5e-4 + TOLERANCE)
    assert page.texts["title"].startswith("Attention of hf: ")


@pytest.mark.parametrize("missing", ["model", "text"])
def test_a_flag_is_missing(missing, monkeypatch):
    values = {"model": "x", "text": "cat", missing: None}
    given = {name: types.SimpleNamespace(value=value) for name, value in values.items()}
    monkeypatch.setattr(attention_program.absl_flags, "FLAGS", given)
    message = f'--{missing} is missing: python -m kbert.attention --model=FOLDER --text="A text."'
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        attention_program.check()


def test_errors_are_one_line():
    done = run("--model=/no/such", "--text=cat")
    assert (done.returncode, done.stderr) == (2, "error: there is no folder /no/such.\n")


def test_the_module_can_be_imported_with_other_programs():
    # The first two have --output_dir, the others --model.
    script = "import kbert.attention, kbert.pretrain, kbert.convert, kbert.export"
    done = subprocess.run([PYTHON, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
