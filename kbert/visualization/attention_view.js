"use strict";
// Shows the attention of a text. Call `listenForAttention` once, and `showAttention` for each text.
const MAX_LINES = 5;  // lines per token while no token is selected
const ROW = 20, MAX_WIDTH = 1100;  // pixels
let data = null, tokens = [], L = 0, N = 0, H = 0, heads = [];
let WIDTH = 0, LEFT = 0, RIGHT = 0, ROOM = 0, CELL = 0, MARGIN = 0;  // layout, in pixels
const state = { layer: 0, head: 0, side: null, token: null, kept: false, cell: null };
let weights = null;  // the weights of the current head: L * L numbers, row by row

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
  const heads = data.maps[layer].map(decoded).filter((head) => head.some((weight) => weight > 0));
  for (const head of heads)
    head.forEach((weight, i) => { mean[i] += weight / heads.length; });
  return mean;
}

// Returns the L attention weights from a token, or to it.
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
  const svg = byId("lines"), most = Math.floor((LEFT - ROOM - 8) / 7);  // characters that fit
  svg.replaceChildren();
  svg.setAttribute("width", WIDTH);
  svg.setAttribute("height", (L + 1) * ROW);
  lines = element("g", { class: "lines" }, svg);
  for (const side of ["from", "at"]) {
    const left = side === "from";
    groups[side] = [];
    element("text", { class: "side", x: left ? LEFT - 8 : RIGHT + 8, y: 14,
      "text-anchor": left ? "end" : "start" }, svg, left ? "query token" : "key token");
    tokens.forEach((token, i) => {
      const y = (i + 1) * ROW;
      const label = left ? `attention from ${token} (${i})` : `attention to ${token} (${i})`;
      const group = element("g", { class: "token", tabindex: i ? -1 : 0, role: "button",
        "aria-pressed": "false", "aria-label": label }, svg);
      element("title", {}, group, label);
      element("rect", { x: left ? ROOM : RIGHT, y: y + 1, width: LEFT - ROOM, height: ROW - 2 },
        group);
      const anchor = { "text-anchor": left ? "end" : "start", "aria-hidden": "true" };
      element("text", { x: left ? LEFT - 8 : RIGHT + 8, y: y + 15, ...anchor }, group,
        shortened(token, most));
      element("text", { class: "weight", x: left ? ROOM - 6 : WIDTH - ROOM + 6, y: y + 14,
        ...anchor }, group);
      group.addEventListener("mouseenter", () => choose(side, i));
      group.addEventListener("mouseleave", () => choose(null, null));
      group.addEventListener("focus", () => choose(side, i));
      group.addEventListener("blur", () => choose(null, null));
      group.addEventListener("click", () => keep(side, i));
      group.addEventListener("keydown", (event) => {
        const other = { ArrowUp: i - 1, ArrowDown: i + 1, Home: 0, End: L - 1 }[event.key];
        if (event.key === "Enter" || event.key === " ") keep(side, i);
        else if (event.key === "ArrowLeft") moveTo("from", i);
        else if (event.key === "ArrowRight") moveTo("at", i);
        else if (other !== undefined) moveTo(side, other);
        else return;
        event.preventDefault();
      });
      groups[side].push(group);
    });
  }
}

// The Tab key stops once on each side, at the token that had the focus last.
function moveTo(side, token) {
  if (token < 0 || token >= L) return;
  groups[side].forEach((group, i) => group.setAttribute("tabindex", i === token ? 0 : -1));
  groups[side][token].focus();
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
      for (const at of largest(row, MAX_LINES)) if (row[at] > 0) drawLine(from, at, row[at]);
    }
    say(L > MAX_LINES ? `the ${MAX_LINES} largest weights of each token; no token is selected`
      : "no token is selected");
    return;
  }
  shown.forEach((weight, other) => {
    if (weight <= 0) return;
    const [from, at] = side === "from" ? [token, other] : [other, token];
    drawLine(from, at, weight / most);
  });
  const best = largest(shown, 3).map((i) => `${named(i)} ${shown[i].toFixed(3)}`).join(", ");
  say(`${named(token)} ${side === "from" ? "attends to" : "is attended to by"} ${best}`);
}

// The heat map

let image = null, cell = null;

function makeMap() {
  const svg = byId("map"), size = MARGIN + L * CELL + 8, most = Math.floor((MARGIN - 6) / 9);
  svg.replaceChildren();
  svg.setAttribute("width", size);
  svg.setAttribute("height", size);
  image = element("image", { x: MARGIN, y: MARGIN, width: L * CELL, height: L * CELL,
    preserveAspectRatio: "none" }, svg);
  element("rect", { class: "frame", x: MARGIN, y: MARGIN, width: L * CELL, height: L * CELL }, svg);
  tokens.forEach((token, i) => {
    const place = MARGIN + (i + 0.5) * CELL + 4;
    element("text", { x: MARGIN - 6, y: place, "text-anchor": "end" }, svg, shortened(token, most));
    element("text", { transform: `translate(${place},${MARGIN - 6}) rotate(-90)` }, svg,
      shortened(token, most));
  });
  cell = element("rect", { class: "cell", width: CELL, height: CELL, visibility: "hidden" }, svg);
}

function listenToMap(svg) {
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
    cell.scrollIntoView({ block: "nearest", inline: "nearest" });
  });
}

function point(row, column) {
  if (row < 0 || row >= L || column < 0 || column >= L) return;
  state.cell = [row, column];
  sayCell();
}

function sayCell() {
  if (state.cell === null) {
    say(`the largest weight is ${weights.reduce((a, b) => Math.max(a, b), 0).toFixed(3)}`);
    return;
  }
  const [row, column] = state.cell;
  cell.setAttribute("x", MARGIN + column * CELL);
  cell.setAttribute("y", MARGIN + row * CELL);
  cell.setAttribute("visibility", "visible");
  const weight = weights[row * L + column].toFixed(data.decimals);
  say(`${named(row)} attends to ${named(column)}: ${weight}`);
}

function drawMap() {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = L;
  const context = canvas.getContext("2d"), pixels = context.createImageData(L, L);
  const most = weights.reduce((a, b) => Math.max(a, b), 1e-9);
  const deep = getComputedStyle(byId("map")).getPropertyValue("--deep").trim().split(" ");
  weights.forEach((weight, i) => {
    deep.forEach((value, channel) => { pixels.data[4 * i + channel] = Number(value); });
    pixels.data[4 * i + 3] = 255 * (weight / most);  // opacity
  });
  context.putImageData(pixels, 0, 0);
  image.setAttribute("href", canvas.toDataURL());
  sayCell();
}

// The current layer and head

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
  showScrolling();
}

// Fades the right edge while the heat map continues beyond it.
function showScrolling() {
  const view = byId("map-view"), beyond = view.scrollWidth - view.clientWidth;
  byId("scrolls").hidden = beyond < 2;
  view.classList.toggle("more", view.scrollLeft < beyond - 1);
}

function option(select, value, text) {
  const node = document.createElement("option");
  node.value = value;
  node.textContent = text;
  select.append(node);
}

function listenForAttention(root) {
  byId("layer").addEventListener("change", (event) => {
    state.layer = Number(event.target.value);
    draw();
  });
  byId("head").addEventListener("change", (event) => {
    state.head = event.target.value === "mean" ? "mean" : Number(event.target.value);
    draw();
  });
  for (const id of ["as-lines", "as-map"]) byId(id).addEventListener("change", draw);
  listenToMap(byId("map"));
  byId("map-view").addEventListener("scroll", showScrolling);
  root.addEventListener("keydown", (event) => {
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
  window.addEventListener("resize", () => { if (data && byId("status").clientWidth) layOut(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    if (data) draw();
  });
}

function layOut() {
  const longest = Math.max(...tokens.map((token) => [...token].length));
  WIDTH = Math.min(byId("status").clientWidth || MAX_WIDTH, MAX_WIDTH);
  ROOM = WIDTH < 500 ? 38 : 60;  // space for a weight beside a token
  LEFT = Math.min(Math.round(0.34 * WIDTH), ROOM + 16 + 8 * longest);
  RIGHT = WIDTH - LEFT;
  MARGIN = Math.min(WIDTH < 500 ? 90 : 150, 9 * longest + 14);
  const room = Math.min(WIDTH, 0.8 * innerHeight) - MARGIN - 8;
  CELL = Math.max(L > 64 ? 14 : 20, Math.min(Math.floor(room / L), 40));
  makeLines();
  makeMap();
  draw();
}

function showAttention(attentionData) {
  data = attentionData;
  tokens = data.tokens;
  [L, N, H] = [tokens.length, data.maps.length, data.maps[0].length];
  heads = [...Array(H).keys(), "mean"];
  Object.assign(state, { layer: Math.min(state.layer, N - 1), side: null, token: null,
    head: heads.includes(state.head) ? state.head : 0, kept: false, cell: null });
  for (const id of ["layer", "head"]) byId(id).replaceChildren();
  for (let layer = 0; layer < N; layer++) option(byId("layer"), layer, layer);
  heads.forEach((head) => option(byId("head"), head, head));
  layOut();
}
