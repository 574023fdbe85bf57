"""An HTML page that shows attention weights: a single file that needs no network."""

import base64
import html
import importlib.resources
import json

import numpy as np

DECIMALS = 4  # of the weights in the page


def attention_page(tokens, weights, title):
    """Returns an HTML page that shows every head as lines between tokens or as a heat map.

    The page contains `attention_data` as JSON.

    Args:
        tokens, weights: as for `attention_data`.
        title: plain text.

    Returns:
        str.
    """
    data = json.dumps(attention_data(tokens, weights))
    data = data.replace("<", "\\u003c")  # "</script>" in a text would end the script element
    title = html.escape(title)
    style, body, script = attention_view()
    head = f"{_HEAD}<title>{title}</title>\n<style>{style}{_STYLE}</style>\n</head>\n"
    scripts = (
        f'<script type="application/json" id="data">{data}</script>\n'
        f"<script>{script}{_START}</script>"
    )
    return f"{head}<body>\n<h1>{title}</h1>\n{body}{_NOSCRIPT}{scripts}\n</body>\n</html>\n"


def attention_data(tokens, weights):
    """Returns the JSON-serializable input of `attention_view`.

    The keys are `tokens`, `decimals` and `maps`: for each layer and head, the (L, L) weights times
    10**decimals, rounded, as base64 of little-endian uint16. This takes 2.7 bytes per weight: 6 MB
    for BERT base and 128 tokens, 100 MB for 512 tokens.

    Args:
        tokens: L strings, not escaped.
        weights: (N, H, L, L), in [0, 1]; 0 for heads that a layer does not have.

    Returns:
        dict.
    """
    numbers = np.rint(np.asarray(weights) * 10**DECIMALS).astype("<u2")
    maps = [[base64.b64encode(head.tobytes()).decode() for head in layer] for layer in numbers]
    return {"tokens": list(tokens), "decimals": DECIMALS, "maps": maps}


def attention_view():
    """Returns style, HTML and script of the attention view.

    Call the script's `listenForAttention(root)` once, with the element whose key events it handles,
    and `showAttention(data)` for each `attention_data`.

    Returns:
        tuple of three str.
    """
    folder = importlib.resources.files("kbert.visualization")
    names = ("attention_view.css", "attention_view.html", "attention_view.js")
    return tuple((folder / name).read_text(encoding="utf-8") for name in names)


_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:">
"""

_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 1rem min(2rem, 4vw); color: var(--ink);
  background: var(--page); }
h1 { font-size: 1.2rem; overflow-wrap: anywhere; }
"""

_NOSCRIPT = "<noscript>This page needs JavaScript.</noscript>\n"

_START = """
listenForAttention(document);
showAttention(JSON.parse(byId("data").textContent));
"""
