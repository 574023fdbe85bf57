"""A page that shows attention in a browser: one file, which asks nothing of any network."""

import base64
import html
import json

import numpy as np

DECIMALS = 4  # of the weights in a page


def attention_page(tokens, weights, title):
    """HTML that shows every head: lines between the tokens, or a heat map.

    The page holds the weights as JSON: `tokens`, `decimals` and `maps`, of each layer and head the
    (L, L) weights times 10**decimals, rounded, as base64 of little-endian uint16. That is 2.7 bytes
    a weight: 6 MB for BERT base and 128 tokens, 100 MB for 512.

    Args:
        tokens: L texts; anything may be in them.
        weights: (N, H, L, L), in [0, 1].
        title: plain text.

    Returns:
        str.
    """
    numbers = np.rint(np.asarray(weights) * 10**DECIMALS).astype("<u2")
    maps = [[base64.b64encode(head.tobytes()).decode() for head in layer] for layer in numbers]
    data = json.dumps({"tokens": list(tokens), "decimals": DECIMALS, "maps": maps})
    data = data.replace("<", "\\u003c")  # or "</script>" in a text would end the data
    title = html.escape(title)
    head = f"{_HEAD}<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n"
    scripts = (
        f'<script type="application/json" id="data">{data}</script>\n<script>{_SCRIPT}</script>'
    )
    return f"{head}<body>\n<h1>{title}</h1>\n{_BODY}{scripts}\n</body>\n</html>\n"


_HEAD = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:">
"""

_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 1rem 2rem; color: #111; background: #fff; }
h1 { font-size: 1.2rem; }
form { display: flex; flex-wrap: wrap; gap: 0.5rem 1.5rem; align-items: center; }
fieldset { border: 0; padding: 0; margin: 0; }
kbd { border: 1px solid #999; border-radius: 3px; padding: 0 0.3em; }
#status { position: sticky; top: 0; background: #fff; padding: 0.4rem 0; margin: 0; z-index: 1;
  min-height: 1.4em; }
#help { color: #555; font-size: 0.9em; }
.scroll { overflow-x: auto; }
svg text { font: 13px system-ui, sans-serif; white-space: pre; }
.token { cursor: pointer; outline: none; }
.token rect { fill: #08519c; fill-opacity: 0; }
.token:focus rect, .token.chosen rect { stroke: #d94801; stroke-width: 2; }
.token .weight { fill: #555; font-size: 11px; }
#map:focus { outline: 2px solid #d94801; }
#map image { image-rendering: pixelated; }
#map .cell { fill: none; stroke: #d94801; stroke-width: 2; pointer-events: none; }
#map .frame { fill: none; stroke: #999; pointer-events: none; }
[hidden] { display: none; }
"""

_BODY = """<form onsubmit="return false">
<label>Layer <select id="layer"></select></label>
<label>Head <select id="head"></select></label>
<fieldset><legend hidden>View</legend>
<label><input type="radio" name="view" id="as-lines" checked> lines</label>
<label><input type="radio" name="view" id="as-map"> heat map</label>
</fieldset>
</form>
<p id="help">Keys: <kbd>l</kbd> <kbd>L</kbd> next and previous layer, <kbd>h</kbd> <kbd>H</kbd>
head, <kbd>v</kbd> the other view, <kbd>Esc</kbd> lets a token go. Hover over a token, or move to
it by <kbd>Tab</kbd>, to see where it looks (left) or who looks at it (right); a click keeps it. On
the heat map, the arrow keys move from cell to cell.</p>
<p id="status" role="status" aria-live="polite"></p>
<div class="scroll" id="lines-view"><svg id="lines" role="group"
 aria-label="Tokens that look, on the left, and that are looked at, on the right"></svg></div>
<div class="scroll" id="map-view" hidden><svg id="map" role="img" tabindex="0"
 aria-label="Heat map: rows look, columns are looked at"></svg></div>
<noscript>This page needs JavaScript.</noscript>
"""

_SCRIPT = r"""
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const tokens = data.tokens, L = tokens.length, N = data.maps.length, H = data.maps[0].length;
const MOST_LINES = 5;  // of each token, while none is chosen
const ROW = 20, LEFT = 240, RIGHT = 460, CELL = L > 64 ? 14 : 20, MARGIN = 150;
const state = { layer: 0, head: 0, side: null, token: null, kept: false, cell: null };
let weights = null;  // of the head that is shown: L * L numbers, row by row

const byId = (id) => document.getElementById(id);

function decoded(text) {
  const bytes = atob(text), scale = 10 ** data.decimals, numbers = new Float32Array(L * L);
  for (let i = 0; i < L * L; i++)
    numbers[i] = (bytes.charCodeAt(2 * i) | bytes.charCodeAt(2 * i + 1) << 8) / scale;
  return numbers;
}

function weightsOf(layer, head) {
  if (head !== "mean") return decoded(data.maps[layer][head]);
  const mean = new Float32Array(L * L);
  for (const text of data.maps[layer])
    decoded(text).forEach((weight, i) => { mean[i] += weight / H; });
  return mean;
}

// What a token looks at, or by what it is looked at: L weights.
function weightsAt(side, token) {
  return tokens.map((_, other) =>
    side === "from" ? weights[token * L + other] : weights[other * L + token]);
}

function largest(numbers, count) {
  const order = numbers.map((_, i) => i).sort((a, b) => numbers[b] - numbers[a]);
  return order.slice(0, count);
}

function element(name, attributes, parent, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  parent.append(node);
  return node;
}

const shortened = (token, most) =>
  [...token].length > most ? [...token].slice(0, most - 1).join("") + "…" : token;

function named(token) { return `${tokens[token]} (${token})`; }

// Lines between the tokens

const groups = { from: [], at: [] };
let lines = null;

function makeLines() {
  const svg = byId("lines");
  svg.setAttribute("width", RIGHT + LEFT);
  svg.setAttribute("height", (L + 1) * ROW);
  lines = element("g", { stroke: "#08519c", "stroke-width": 2 }, svg);
  for (const side of ["from", "at"]) {
    const left = side === "from";
    element("text", { x: left ? LEFT - 8 : RIGHT + 8, y: 14, "text-anchor": left ? "end" : "start",
      "font-weight": "bold" }, svg, left ? "looks from" : "looks at");
    tokens.forEach((token, i) => {
      const y = (i + 1) * ROW;
      const label = left ? `where ${token} (${i}) looks` : `who looks at ${token} (${i})`;
      const group = element("g", { class: "token", tabindex: 0, role: "button",
        "aria-pressed": "false", "aria-label": label }, svg);
      element("title", {}, group, label);
      element("rect", { x: left ? 60 : RIGHT, y: y + 1, width: LEFT - 60, height: ROW - 2 }, group);
      element("text", { x: left ? LEFT - 8 : RIGHT + 8, y: y + 15,
        "text-anchor": left ? "end" : "start" }, group, shortened(token, 18));
      element("text", { class: "weight", x: left ? 52 : RIGHT + LEFT - 52, y: y + 14,
        "text-anchor": left ? "end" : "start" }, group);
      group.addEventListener("mouseenter", () => choose(side, i));
      group.addEventListener("mouseleave", () => choose(null, null));
      group.addEventListener("focus", () => choose(side, i));
      group.addEventListener("blur", () => choose(null, null));
      group.addEventListener("click", () => keep(side, i));
      group.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        keep(side, i);
      });
      groups[side].push(group);
    });
  }
}

function choose(side, token) {
  if (state.kept) return;
  Object.assign(state, { side, token });
  drawLines();
}

function keep(side, token) {
  const again = state.kept && state.side === side && state.token === token;
  Object.assign(state, { side, token, kept: !again });
  drawLines();
}

function drawLine(from, at, opacity) {
  element("line", { x1: LEFT, y1: (from + 1.5) * ROW, x2: RIGHT, y2: (at + 1.5) * ROW,
    "stroke-opacity": opacity.toFixed(3) }, lines);
}

function drawLines() {
  lines.replaceChildren();
  const { side, token } = state;
  const shown = side === null ? null : weightsAt(side, token);
  const most = shown === null ? 1 : Math.max(...shown, 1e-9);
  for (const each of ["from", "at"]) {
    groups[each].forEach((group, i) => {
      const chosen = side === each && token === i, weighed = side !== null && side !== each;
      group.classList.toggle("chosen", chosen);
      group.setAttribute("aria-pressed", String(chosen && state.kept));
      const [rect, , weight] = [...group.children].slice(1);
      rect.style.fillOpacity = weighed ? (0.5 * shown[i] / most).toFixed(3) : 0;
      weight.textContent = weighed && shown[i] >= 0.0005 ? shown[i].toFixed(3) : "";
    });
  }
  if (side === null) {
    for (let from = 0; from < L; from++) {
      const row = weightsAt("from", from);
      for (const at of largest(row, MOST_LINES)) if (row[at] > 0) drawLine(from, at, row[at]);
    }
    say(L > MOST_LINES ? `the ${MOST_LINES} largest weights of each token; no token is chosen`
      : "no token is chosen");
    return;
  }
  shown.forEach((weight, other) => {
    if (weight <= 0) return;
    const [from, at] = side === "from" ? [token, other] : [other, token];
    drawLine(from, at, weight / most);
  });
  const best = largest(shown, 3).map((i) => `${named(i)} ${shown[i].toFixed(3)}`).join(", ");
  say(side === "from" ? `${named(token)} looks at ${best}` : `${named(token)} is seen by ${best}`);
}

// The heat map

let image = null, cell = null;

function makeMap() {
  const svg = byId("map"), size = MARGIN + L * CELL + 8;
  svg.setAttribute("width", size);
  svg.setAttribute("height", size);
  image = element("image", { x: MARGIN, y: MARGIN, width: L * CELL, height: L * CELL,
    preserveAspectRatio: "none" }, svg);
  element("rect", { class: "frame", x: MARGIN, y: MARGIN, width: L * CELL, height: L * CELL }, svg);
  tokens.forEach((token, i) => {
    const place = MARGIN + (i + 0.5) * CELL + 4;
    element("text", { x: MARGIN - 6, y: place, "text-anchor": "end" }, svg, shortened(token, 18));
    element("text", { transform: `translate(${place},${MARGIN - 6}) rotate(-90)` }, svg,
      shortened(token, 18));
  });
  cell = element("rect", { class: "cell", width: CELL, height: CELL, visibility: "hidden" }, svg);
  svg.addEventListener("mousemove", (event) => {
    const box = svg.getBoundingClientRect();
    point(Math.floor((event.clientY - box.top - MARGIN) / CELL),
      Math.floor((event.clientX - box.left - MARGIN) / CELL));
  });
  svg.addEventListener("keydown", (event) => {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (!(event.key in moves)) return;
    event.preventDefault();
    const [row, column] = state.cell || [0, 0], [down, right] = moves[event.key];
    point(row + down, column + right);
  });
}

function point(row, column) {
  if (row < 0 || row >= L || column < 0 || column >= L) return;
  state.cell = [row, column];
  sayCell();
}

function sayCell() {
  if (state.cell === null) {
    say(`the darkest cell is ${weights.reduce((a, b) => Math.max(a, b), 0).toFixed(3)}`);
    return;
  }
  const [row, column] = state.cell;
  cell.setAttribute("x", MARGIN + column * CELL);
  cell.setAttribute("y", MARGIN + row * CELL);
  cell.setAttribute("visibility", "visible");
  const weight = weights[row * L + column].toFixed(data.decimals);
  say(`${named(row)} looks at ${named(column)}: ${weight}`);
}

function drawMap() {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = L;
  const context = canvas.getContext("2d"), pixels = context.createImageData(L, L);
  const most = weights.reduce((a, b) => Math.max(a, b), 1e-9);
  weights.forEach((weight, i) => {
    const share = weight / most;  // white to dark blue
    [8, 48, 107].forEach((dark, channel) => {
      pixels.data[4 * i + channel] = 255 + share * (dark - 255);
    });
    pixels.data[4 * i + 3] = 255;
  });
  context.putImageData(pixels, 0, 0);
  image.setAttribute("href", canvas.toDataURL());
  sayCell();
}

// What is chosen

function say(text) {
  const head = state.head === "mean" ? "mean of the heads" : `head ${state.head}`;
  byId("status").textContent = `Layer ${state.layer}, ${head}: ${text}.`;
}

function draw() {
  byId("layer").value = state.layer;
  byId("head").value = state.head;
  weights = weightsOf(state.layer, state.head);
  const map = byId("as-map").checked;
  byId("map-view").hidden = !map;
  byId("lines-view").hidden = map;
  if (map) drawMap(); else drawLines();
}

function option(select, value, text) {
  const node = document.createElement("option");
  node.value = value;
  node.textContent = text;
  select.append(node);
}

const heads = [...Array(H).keys(), "mean"];

function start() {
  for (let layer = 0; layer < N; layer++) option(byId("layer"), layer, layer);
  heads.forEach((head) => option(byId("head"), head, head));
  byId("layer").addEventListener("change", (event) => {
    state.layer = Number(event.target.value);
    draw();
  });
  byId("head").addEventListener("change", (event) => {
    state.head = event.target.value === "mean" ? "mean" : Number(event.target.value);
    draw();
  });
  for (const id of ["as-lines", "as-map"]) byId(id).addEventListener("change", draw);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.tagName === "SELECT") return;
    const step = event.shiftKey ? -1 : 1, key = event.key.toLowerCase();
    if (key === "l") state.layer = (state.layer + step + N) % N;
    else if (key === "h")
      state.head = heads[(heads.indexOf(state.head) + step + heads.length) % heads.length];
    else if (key === "v") byId(byId("as-map").checked ? "as-lines" : "as-map").checked = true;
    else if (key === "escape") Object.assign(state, { side: null, token: null, kept: false });
    else return;
    draw();
  });
  makeLines();
  makeMap();
  draw();
}

start();
"""
