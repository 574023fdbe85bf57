"""A page that shows attention in a browser: one file, which asks nothing of any network."""

import base64
import html
import importlib.resources
import json

import numpy as np

DECIMALS = 4  # of the weights in a page


def attention_page(tokens, weights, title):
    """HTML that shows every head: lines between the tokens, or a heat map.

    The page holds `attention_data` as JSON.

    Args:
        tokens, weights: as for `attention_data`.
        title: plain text.

    Returns:
        str.
    """
    data = json.dumps(attention_data(tokens, weights))
    data = data.replace("<", "\\u003c")  # or "</script>" in a text would end the data
    title = html.escape(title)
    style, body, script = attention_view()
    head = f"{_HEAD}<title>{title}</title>\n<style>{style}{_STYLE}</style>\n</head>\n"
    scripts = (
        f'<script type="application/json" id="data">{data}</script>\n'
        f"<script>{script}{_START}</script>"
    )
    return f"{head}<body>\n<h1>{title}</h1>\n{body}{_NOSCRIPT}{scripts}\n</body>\n</html>\n"


def attention_data(tokens, weights):
    """What `attention_view` shows, as JSON can hold it.

    `tokens`, `decimals` and `maps`: of each layer and head the (L, L) weights times 10**decimals,
    rounded, as base64 of little-endian uint16. That is 2.7 bytes a weight: 6 MB for BERT base and
    128 tokens, 100 MB for 512.

    Args:
        tokens: L texts; anything may be in them.
        weights: (N, H, L, L), in [0, 1]; heads that a layer has not are 0.

    Returns:
        dict.
    """
    numbers = np.rint(np.asarray(weights) * 10**DECIMALS).astype("<u2")
    maps = [[base64.b64encode(head.tobytes()).decode() for head in layer] for layer in numbers]
    return {"tokens": list(tokens), "decimals": DECIMALS, "maps": maps}


def attention_view():
    """Style, HTML and script of what shows attention in a page.

    The script's `listenForAttention(root)` is called once, with the element whose keys it may
    hear, and `showAttention(data)` for each `attention_data`.

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
