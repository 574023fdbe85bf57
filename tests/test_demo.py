"""The page of `kbert.serve --demo`: what it asks the server for, and what goes with it."""

import asyncio
import base64
import gc
import hashlib
import re
import shutil
import types
import urllib.request

import event_loop
import numpy as np
import pytest
import tensorflow as tf
from exports import KINDS, write_folders
from server_process import serving
from test_attention import Page

import kbert
from kbert.server import demo
from kbert.server.errors import RequestError
from kbert.serving import saved_model
from kbert.visualization.attention import attention_weights

ASKED = {"pair": {"text": "the cat ran", "text_pair": "a dog sat [MASK]"}}
ASKED["fill_mask"] = {"text": "the [MASK] sat [CLS]."}
ROUNDED = 0.5e-4 * (1 + 1e-3)  # of 4 decimals


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Kind -> (folder of weights, folder of versions); and "other", which kbert has not made."""
    weights = write_folders(tmp_path_factory.mktemp("weights"), ASKED)
    root, found = tmp_path_factory.mktemp("models"), {}
    for kind, folder in weights.items():
        (root / kind).mkdir()
        method = saved_model.load_endpoint(folder, KINDS[kind][3])
        saved_model.save_endpoint(method, root / kind / "7")
        found[kind] = folder, root / kind
    module = tf.Module()
    module.f = tf.function(lambda x: {"y": x}, [tf.TensorSpec([None], tf.float32, "x")])
    tf.saved_model.save(module, str(root / "other" / "1"), {"serving_default": module.f})
    return found | {"other": (None, root / "other")}


@pytest.fixture(scope="module")
def server(folders, tmp_path_factory):
    lines = [f'config {{ name: "{kind}" base_path: "{x}" }}' for kind, (_, x) in folders.items()]
    path = tmp_path_factory.mktemp("config") / "models.config"
    path.write_text("model_config_list {\n" + "\n".join(lines) + "\n}\n")
    flags = (f"model_config_file={path}", "backend=tensorflow", "demo", "max_request_bytes=100000")
    with serving(*flags) as server:
        yield server
        assert "Traceback" not in server.said


def test_what_is_served(server):
    code, found = server.get("/demo/models")
    models = {model["name"]: model["versions"] for model in found["models"]}
    labels = list(KINDS["pair"][1]["label_names"])
    assert code == 200 and models == {
        "pair": [
            {
                "version": 7,
                "method": "classify",
                "inputs": ["text", "text_pair"],
                "labels": labels,
                "max_seq_length": 16,
            }
        ],
        "fill_mask": [
            {
                "version": 7,
                "method": "fill_mask",
                "inputs": ["text"],
                "labels": [],
                "max_seq_length": 32,
            }
        ],
        "other": [{"version": 1, "method": None}],
    }
    assert f"demo: http://127.0.0.1:{server.rest}/" in server.lines


def test_the_page_runs_its_own_script_alone(server):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.rest}/") as answer:
        text, headers = answer.read().decode(), answer.headers
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert headers["X-Content-Type-Options"] == "nosniff"
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    for name in ("style", "script"):
        (part,) = re.findall(rf"<{name}>(.*?)</{name}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
        assert policy.pop(f"{name}-src") == f"'sha256-{digest}'"
    assert policy == {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    page = Page(text)
    links = [value for _, attrs in page.tags for name, value in attrs.items() if name == "href"]
    assert len(links) == 1 and links[0].startswith("data:image/svg+xml,")
    assert not {"src", "action", "style"} & {name for _, attrs in page.tags for name in attrs}
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    addresses = set(re.findall(r"\w+://[^\s\"']*", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, which nothing is read from
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)


def test_the_page_can_be_read_aloud(server):
    page = Page(server.get("/")[1])
    assert ("html", {"lang": "en"}) in page.tags
    by_id = {attrs["id"]: (tag, attrs) for tag, attrs in page.tags if "id" in attrs}
    assert len(by_id) == sum("id" in attrs for _, attrs in page.tags)
    assert by_id["said"][1]["role"] == "status" and by_id["error"][1]["role"] == "alert"
    wanted = set(re.findall(r'byId\("([\w-]+)"\)', page.texts["script"]))
    assert wanted and wanted <= by_id.keys()
    for _, attrs in page.tags:
        for name in ("aria-labelledby", "aria-describedby"):
            assert attrs.get(name, "said") in by_id


@pytest.mark.parametrize("kind", ASKED)
def test_attention_is_that_of_kbert_attention(server, folders, kind):
    """The same weights, from the folder that was exported: to the decimals that are sent."""
    folder, _ = folders[kind]
    reads = ("[MASK]",) if kind == "fill_mask" else False  # as the served model reads a text
    tokenizer = kbert.BertTokenizer.from_pretrained(folder, special_tokens_in_text=reads)
    tokens, expected = attention_weights(folder, tokenizer, **ASKED[kind])
    assert ("[MASK]" in tokens) == (kind == "fill_mask") and tokens.count("[CLS]") == 1
    for version in ({}, {"version": 7}):
        code, found = server.get("/demo/attention", {"model": kind, **version, **ASKED[kind]})
        assert code == 200 and found["tokens"] == tokens and found["notes"] == []
        maps = [[_decoded(head, len(tokens)) for head in layer] for layer in found["maps"]]
        np.testing.assert_allclose(maps, expected, atol=ROUNDED)
    assert expected.shape == (2, 3, len(tokens), len(tokens)) and expected.std() > 0.01


def _decoded(text, L):
    return np.frombuffer(base64.b64decode(text), "<u2").reshape(L, L) / 1e4


def test_long_texts_are_cut(server):
    code, found = server.get("/demo/attention", {"model": "pair", "text": "cat " * 5000})
    assert code == 200 and len(found["tokens"]) == 16  # as the model reads it
    assert found["notes"] == ["note: the text has 5,002 tokens; truncated to max_length, 16"]


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (b"{", 400, "the body is not JSON"),
        ([], 400, "the body is not a JSON object"),
        ({}, 400, "model must be a string."),
        ({"model": "pair"}, 400, "text must be a string."),
        ({"model": "pair", "text": 7}, 400, "text must be a string."),
        ({"model": "pair", "text": "\ud800"}, 400, "text must be a string."),
        ({"model": "pair", "text": "a", "text_pair": None}, 400, "text_pair must be a string."),
        (
            {"model": "pair", "text": "a", "version": "7"},
            400,
            "version must be a non-negative integer.",
        ),
        (
            {"model": "pair", "text": "a", "version": -1},
            400,
            "version must be a non-negative integer.",
        ),
        (
            {"model": "pair", "text": "a", "version": True},
            400,
            "version must be a non-negative integer.",
        ),
        ({"model": "pair", "text": "a", "layer": 1}, 400, "and text_pair; got 'layer'."),
        ({"model": "pair", "text": "a", "version": 8}, 404, "model 'pair' has no version 8."),
        ({"model": "x\n", "text": "a"}, 404, "there is no model 'x\\n'; available: pair"),
        ({"model": "other", "text": "a"}, 400, "model 'other' was not exported by kbert, so it"),
        ({"model": "pair", "text": " "}, 400, "text is empty: got ' '."),
        ({"model": "pair", "text": "a", "text_pair": ""}, 400, "text_pair is empty: got ''."),
        ({"model": "pair", "text": "a" * 200_000}, 413, "larger than 100,000 bytes"),
    ],
)
def test_bad_requests(server, body, code, message):
    found = server.get("/demo/attention", body)
    assert found[0] == code and message in found[1]["error"], found
    assert "\n" not in found[1]["error"] and len(found[1]["error"]) < 500


def test_other_paths_and_methods(server):
    for path, body in (("/demo/attention", None), ("/demo/models", {}), ("/", {}), ("/demo", None)):
        code, found = server.get(path, body)
        assert code == 404 and "is not served" in found["error"]
    assert server.get("/demo/models")[0] == 200
    code, found = server.get("/v1/models/pair:predict", {"instances": [ASKED["pair"]]})
    assert code == 200 and found["predictions"][0]["label"] in KINDS["pair"][1]["label_names"]
    text = server.get("/monitoring/prometheus/metrics")[1]
    assert 'method="rest_demo",model="",status="OK"' in text


class Service:
    """Computes in threads, which go on when they are told to; how many do at once is seen."""

    def __init__(self, servable):
        self.models = types.SimpleNamespace(find=lambda spec: (7, servable))
        self.asked, self.now, self.most, self.go_on = [], 0, 0, asyncio.Event()

    async def predict(self, servable, signature, inputs):
        self.asked.append(servable)
        self.now += 1
        self.most = max(self.most, self.now)
        await self.go_on.wait()
        self.now -= 1
        tokens = np.array(["a"], object)
        return {"tokens": tokens, "weights": np.ones((1, 1, 1, 1)), "notes": tokens[:0]}


class Version:
    """A servable that was an export."""

    folder, metadata = "/nothing", {"method": "classify", "max_seq_length": 16, "weights": []}


def test_one_at_a_time_and_few_wait():
    async def run():
        service = Service(Version())
        page = demo.Demo(service)
        tasks = [
            asyncio.create_task(page.attention(asked)) for _ in range(demo.MAX_ATTENTION_REQUESTS)
        ]
        await asyncio.sleep(0.01)
        with pytest.raises(
            RequestError, match=r"^16 attention requests are open; try again later[.]$"
        ):
            await page.attention(asked)
        tasks[0].cancel()  # its thread goes on
        tasks[1].cancel()  # it had not begun
        await asyncio.sleep(0.01)
        assert len(service.asked) == 1
        service.go_on.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(x, asyncio.CancelledError) for x in found] == [True] * 2 + [False] * 14
        assert service.most == 1 and len(service.asked) == 15  # the cancelled one was computed
        assert len({id(servable) for servable in service.asked}) == 1  # loaded once
        await page.attention(asked)  # nobody waits any more

    asked = {"model": "m", "text": "a"}
    event_loop.run(run())


def test_a_version_that_is_let_go_takes_its_attention_along():
    async def run():
        service = Service(Version())
        service.go_on.set()
        page = demo.Demo(service)
        await page.attention({"model": "m", "text": "a"})
        kept = len(page._attention)
        service.models, service.asked = None, []
        gc.collect()
        return kept, len(page._attention)

    assert event_loop.run(run()) == (1, 0)


def test_an_export_that_is_gone_or_damaged(folders, tmp_path):
    copy = tmp_path / "7"
    shutil.copytree(folders["pair"][1] / "7", copy)
    metadata = {"method": "classify", "max_seq_length": 16}
    servable = types.SimpleNamespace(folder=str(copy), metadata=metadata)
    inputs = {"text": np.array(["cat"], object)}
    (copy / "assets.extra" / "vocab.txt").write_text("[PAD]\n")
    with pytest.raises(RequestError, match=r"vocab\.txt is damaged: its checksum differs"):
        demo.AttentionServable(servable).compute(None, inputs)
    shutil.rmtree(copy)
    with pytest.raises(RequestError, match="there is no folder"):
        demo.AttentionServable(servable).compute(None, inputs)


def test_exports_with_weights_of_8_bits_show_no_attention():
    servable = types.SimpleNamespace(metadata={"weights": ["bert/pooler/dense/kernel_scale"]})
    models = types.SimpleNamespace(find=lambda spec: (1, servable))
    page = demo.Demo(types.SimpleNamespace(models=models))
    with pytest.raises(
        RequestError, match="model 'm' has int8 weights; attention needs a float32 export of"
    ):
        event_loop.run(page.attention({"model": "m", "text": "a"}))
    with pytest.raises(
        RequestError, match=r"text must have at most 20,000 characters; got 20,001\."
    ):
        event_loop.run(page.attention({"model": "m", "text": "a" * 20_001}))
