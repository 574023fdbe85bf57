"""A self-contained HTML page that shows attention weights."""

import base64
import html
import importlib.resources
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

DECIMALS = 4  # of the weights on the page
_FOLDER = importlib.resources.files("kbert.visualization")


def attention_page(tokens: Sequence[str], weights: np.ndarray, title: str) -> str:
    """Returns an HTML page that shows each head as lines between tokens or as a heat map.

    The page contains the result of `attention_data` as JSON.
    """
    data = json.dumps(attention_data(tokens, weights))
    data = data.replace("<", "\\u003c")  # "</script>" in a text would end the script element
    page = read_page(_FOLDER / "attention_page.html")
    return page.replace("<!-- title -->", html.escape(title)).replace("<!-- data -->", data)


def attention_data(tokens: Sequence[str], weights: np.ndarray) -> dict[str, object]:
    """Returns the JSON-serializable input of the attention view.

    The keys are `tokens`, `decimals` and `maps`. `maps` is a list of layers, each a list of heads.
    A head is a base64 string of its (L, L) weights times 10**decimals, rounded to little-endian
    uint16. This takes 2.7 bytes per weight: 6 MB for BERT-base with 128 tokens, and 100 MB with 512
    tokens.

    Args:
        tokens: L strings, not escaped.
        weights: (N, H, L, L), in [0, 1]; 0 for heads that a layer does not have.
    """
    numbers = np.rint(np.asarray(weights) * 10**DECIMALS).astype("<u2")
    maps = [[base64.b64encode(head.tobytes()).decode() for head in layer] for layer in numbers]
    return {"tokens": list(tokens), "decimals": DECIMALS, "maps": maps}


def read_page(path: "Traversable") -> str:
    """Reads an HTML page and inserts the CSS, HTML and JavaScript of the attention view.

    The page's own script calls `listenForAttention(root)` once, with the element whose key events
    the view handles, and `showAttention(data)` for each result of `attention_data`.

    Args:
        path: HTML file with the placeholders `/* attention_view.css */`,
            `<!-- attention_view.html -->` and `/* attention_view.js */`.
    """
    page = path.read_text(encoding="utf-8")
    for name, mark in (("css", "/* {} */"), ("html", "<!-- {} -->"), ("js", "/* {} */")):
        part = _FOLDER / f"attention_view.{name}"
        page = page.replace(mark.format(part.name), part.read_text(encoding="utf-8"))
    return page
