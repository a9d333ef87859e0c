"use strict";
// The rows, what is chosen among them, and how numbers are said (as attnbench/words.py says them).

const DOC = JSON.parse(document.getElementById("data").textContent);
const ROWS = Array.from({ length: DOC.rows }, (_, i) => i);
const LOOKS = new Map(DOC.mechanisms.map((look) => [look.name, look]));

const number = (name, i) => (DOC.numbers[name] ? DOC.numbers[name][i] : null);

function text(name, i) {
  const column = DOC.texts[name];
  const at = column ? column.at[i] : -1;
  return at < 0 ? null : column.values[at];
}

const caseId = (i) => ["mechanism", "workload", "shape_id", "dtype"].map((name) => text(name, i)).join(".");

function startedAt(i) {
  const seconds = number("started_s", i);
  return seconds === null || DOC.begun === null
    ? null
    : new Date(Date.parse(DOC.begun) + seconds * 1000).toISOString().slice(0, 19) + "Z";
}

// --- numbers -------------------------------------------------------------------------------------------------

// Three digits, rounded like Python's format: what lies exactly between two goes to the even one.
function three(value) {
  if (value <= 0) return "0";
  const places = (v) => Math.min(100, Math.max(0, 2 - Math.floor(Math.log10(v))));
  const rounded = Number(value.toFixed(places(value)));
  const digits = rounded ? places(rounded) : places(value);
  const whole = Math.floor(value * 10 ** digits);
  const between = Number.isInteger(value * 2 ** (digits + 1)) && value * 10 ** digits - whole === 0.5;
  const said = (between && whole % 2 === 0 ? whole / 10 ** digits : value).toFixed(digits);
  const [front, back] = said.split(".");
  return front.replace(/\B(?=(\d{3})+$)/g, ",") + (back === undefined ? "" : `.${back}`);
}

function scaled(value, units, least) {
  for (const [unit, name] of units) if (value >= unit * least) return `${three(value / unit)}${name}`;
  return null;
}

const TENS = [[1e9, " G"], [1e6, " M"], [1e3, " k"]];
const BYTES = [[2 ** 40, " TiB"], [2 ** 30, " GiB"], [2 ** 20, " MiB"], [2 ** 10, " KiB"]];

const say = {
  rate: (v) => `${scaled(v, TENS, 0.9995) ?? three(v)} tokens/s`,
  time: (v) => (v >= 999.5 ? `${three(v / 1e3)} s` : v >= 0.01 ? `${three(v)} ms` : `${three(v * 1e3)} µs`),
  bytes: (v) => scaled(v, BYTES, 1) ?? `${v.toFixed(0)} B`,
  error: (v) => v.toExponential(1).replace(/e([+-])(\d)$/, "e$10$2"),
  share: (v) => `${(v * 100).toFixed(v < 0.1 ? 1 : 0)} %`,
  plain: (v) => three(v),
  count: (v) => v.toLocaleString("en-US"),
};

// A tick is a round number: as short as it gets.
const short = (v) => String(Number(v.toPrecision(6)));
const unitTick = (units) => (v) => {
  for (const [unit, name] of units) if (v >= unit * 0.999) return `${short(v / unit)}${name}`;
  return short(v);
};
const tick = {
  rate: (v) => unitTick(TENS)(v).replace(" ", ""),
  time: (v) => (v === 0 ? "0" : v >= 1e3 ? `${short(v / 1e3)} s` : v >= 0.0099 ? `${short(v)} ms` : `${short(v * 1e3)} µs`),
  bytes: (v) => (v === 0 ? "0" : unitTick(BYTES)(v)),
  error: (v) => (v === 0 ? "0" : v.toExponential(0)),
  share: (v) => `${short(v * 100)} %`,
  plain: (v) => (v >= 1e4 ? v.toLocaleString("en-US") : short(v)),
};

function lengthLabel(tokens) {
  for (const [unit, name] of [[2 ** 20, "M"], [2 ** 10, "k"]])
    if (tokens >= unit && tokens % (unit / 4) === 0) return `${tokens / unit}${name}`;
  return tokens.toLocaleString("en-US");
}

// --- what is chosen --------------------------------------------------------------------------------------------

const state = {
  chosen: Object.fromEntries(DOC.selectors.map((s) => [s.key, s.open ? null : s.values[0]])),
  hidden: new Set(),
  log: { x: true, y: true },
  paper: false,
};
const listeners = [];
const changed = () => listeners.forEach((listener) => listener());

const matches = (i, keys = Object.keys(state.chosen)) =>
  keys.every((key) => state.chosen[key] === null || text(key, i) === state.chosen[key] || (key === "by_device" && text(key, i) === null));

const isShown = (i) => matches(i) && !state.hidden.has(text("line", i));

// The first choice is the first in order under which something was measured.
(function chooseSomething() {
  const closed = DOC.selectors.filter((s) => !s.open);
  const places = (i) => closed.map((s) => s.values.indexOf(text(s.key, i)));
  const before = (a, b) => a.map((place, n) => place - b[n]).find((difference) => difference !== 0) < 0;
  let best = null;
  for (const i of ROWS) {
    if (text("status", i) !== "ok" || places(i).includes(-1)) continue;
    if (best === null || before(places(i), best)) best = places(i);
  }
  if (best !== null) closed.forEach((s, n) => (state.chosen[s.key] = s.values[best[n]]));
})();

// --- elements --------------------------------------------------------------------------------------------------

function element(name, attributes = {}, ...children) {
  const svg = SVG_NAMES.has(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}
const SVG_NAMES = new Set(["svg", "g", "path", "line", "rect", "circle", "text", "title", "polyline"]);

const colour = (name) => `var(--m${DOC.mechanisms.findIndex((look) => look.name === name)})`;

function marker(name, size) {
  const look = LOOKS.get(name);
  return element("path", { d: look.marker, transform: `scale(${size})`, class: "marker", style: `fill:${colour(name)}` });
}
