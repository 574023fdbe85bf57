"""How the demo page shows models, answers and errors: in Chromium, with an imitated server."""

import http.server
import json
import pathlib
import threading

import numpy as np
import pytest
from browser import CHROMIUM, Browser

import kbert
from kbert.visualization.attention_page import attention_data, read_page

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
HTML = read_page(pathlib.Path(kbert.__file__).parent / "server/demo.html").encode()
MODELS = {  # name: (method, labels)
    "authors": ("classify", ["austen", "doyle", "newton", "president", "twain"]),
    "films": ("classify", ["negative", "positive"]),
    "trips": ("classify", ["work", "holiday"]),
    "words": ("fill_mask", []),
    "length": ("length", ["long", "short"]),  # of a task that the page does not know
}
ANSWER = {"label": "long", "score": 0.75, "probabilities": [0.75, 0.25]}
TOKENS = [f"token{i}" for i in range(24)]


class Server(http.server.BaseHTTPRequestHandler):
    """Answers each model with ANSWER, and texts with "fail" with an error."""

    def log_message(self, *args):
        pass

    def answer(self, code, body, kind="application/json"):
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

    def do_GET(self):
        if self.path == "/":
            return self.answer(200, HTML, "text/html; charset=utf-8")
        shared = {"version": 1, "inputs": ["text"], "max_seq_length": 64}
        models = [
            {"name": name, "versions": [{**shared, "method": method, "labels": labels}]}
            for name, (method, labels) in MODELS.items()
        ]
        return self.answer(200, {"models": models})

    def do_POST(self):
        request = self.rfile.read(int(self.headers["Content-Length"]))
        if b"fail" in request:
            return self.answer(400, {"error": "the text is too long"})
        if self.path == "/demo/attention":
            weights = np.full((2, 2, len(TOKENS), len(TOKENS)), 1 / len(TOKENS))
            return self.answer(200, {**attention_data(TOKENS, weights), "notes": []})
        return self.answer(200, {"predictions": [ANSWER]})


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    browser.look(1280, 900)
    browser.open(f"http://127.0.0.1:{server.server_port}/")
    browser.wait("document.querySelectorAll('input[name=model]').length")
    yield browser
    browser.close()
    server.shutdown()


def choose(page, name):
    page.script(f"document.querySelector('input[value={name}]').click()")


def ask(page, text):
    page.script(f"document.querySelector('textarea').value = {json.dumps(text)}")
    page.script("document.querySelector('#form').requestSubmit()")
    page.wait(
        "!document.querySelector('#result').hasAttribute('aria-busy') && "
        "document.querySelector('#said').innerText + document.querySelector('#error').innerText"
    )


def test_examples_fit_the_labels(page):
    first = {}
    for name in ("authors", "films", "trips", "length"):
        choose(page, name)
        examples = "[...document.querySelectorAll('#examples button')].map((x) => x.innerText)"
        first[name] = (page.script(examples) or [None])[0]
    assert first["authors"].startswith("The rays of light are refracted")
    assert first["films"].startswith("A film to remember")
    assert first["trips"].startswith("The train was late again") and first["length"] is None


def test_an_error_replaces_the_answer(page):
    shown = "['#error', '#said', '#shown'].map((id) => document.querySelector(id).innerText)"
    hidden = "['#looking', '#program'].map((id) => document.querySelector(id).hidden)"
    choose(page, "trips")
    ask(page, "by train")
    assert page.script(shown)[:2] == ["", "long, 75.0 %"] and page.script(hidden) == [False] * 2
    ask(page, "to fail")
    assert page.script(shown) == [
        "The text is too long.",
        "",
        "No answer: see the error in the form.",
    ]
    assert page.script(hidden) == [True] * 2
    choose(page, "words")
    ask(page, "a text without a mask")
    error, said, _ = page.script(shown)
    assert error == "Insert [MASK] where a word should be predicted." and said == ""


def test_outputs_of_other_methods_are_shown_as_json(page):
    choose(page, "length")
    ask(page, "a text")
    assert page.text("#said") == "Outputs of length"
    assert json.loads(page.text("#shown pre")) == ANSWER


def test_the_attention_fits_the_width(page):
    choose(page, "trips")
    ask(page, "by train")
    page.script("document.querySelector('#look').click()")
    page.wait("document.querySelectorAll('#lines .token').length")
    assert page.script("byId('lines').clientWidth") > 1000
    page.script("document.getElementById('as-map').click()")
    assert page.script("byId('map').clientWidth") > 600 and page.script("byId('scrolls').hidden")
    page.look(360, 740, phone=True)
    page.wait("!byId('scrolls').hidden && byId('map-view').classList.contains('more')")
    page.script("byId('map-view').scrollLeft = 10_000")
    page.wait("!byId('map-view').classList.contains('more')")
