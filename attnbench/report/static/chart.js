// A chart: lines over length (or points over shapes, or over intensity), marks for cases without a value, a pointer.

const MARKS = {
  incorrect: "!", oom: "×", timeout: "▷", crashed: "✶", error: "□", unsupported: "–",
};
const MARGIN = { top: 12, right: 14, bottom: 42, left: 74 };
const HEIGHT = 300;
const PAPER = 400; // width on paper, two charts side by side
const STRIPS = new Set(["tokens_per_s", "median_ms", "peak_bytes", "step_ms"]); // where cases without a value are told
const STRIP_ROW = 15;

class Chart {
  constructor(spec, host) {
    this.spec = spec;
    this.host = host;
    this.points = [];
    this.current = -1;
    this.svg = element("svg", {
      role: "application",
      tabindex: "0",
      "aria-label": `${spec.title}: chart of ${spec.axis}. Arrow keys move from point to point, Enter opens the row.`,
      onpointermove: (event) => this.point(event),
      onpointerdown: (event) => this.point(event),
      onpointerleave: () => this.leave(),
      onclick: () => this.open(),
      onkeydown: (event) => this.key(event),
      onblur: () => this.leave(),
    });
    this.empty = element("p", { class: "empty", hidden: true });
    host.append(this.svg, this.empty);
  }

  // What is drawn: rows under the present choice; a chart of one workload keeps to that.
  rows() {
    const keys = Object.keys(state.chosen).filter((key) => !(this.spec.only && key === "workload"));
    return ROWS.filter(
      (i) =>
        matches(i, keys) &&
        !state.hidden.has(text("line", i)) &&
        (!this.spec.only || text("workload", i) === this.spec.only),
    );
  }

  get categorical() {
    return DOC.listed && this.spec.x === "seq_len";
  }

  draw() {
    const rows = this.rows();
    const x = (i) => (this.categorical ? text("shape", i) : number(this.spec.x, i));
    const good = rows.filter((i) => text("status", i) === "ok" && number(this.spec.key, i) > 0 && x(i) !== null);
    const gaps = STRIPS.has(this.spec.key) ? rows.filter((i) => text("status", i) !== "ok" && x(i) !== null) : [];
    this.svg.replaceChildren();
    this.points = [];
    this.current = -1;
    const nothing = !good.length && !gaps.length;
    this.empty.hidden = !nothing;
    this.svg.toggleAttribute("hidden", nothing);
    if (nothing) {
      this.empty.textContent = "Nothing was measured under this choice.";
      return;
    }
    const strip = [...LOOKS.keys()].filter((name) => gaps.some((i) => text("line", i) === name));
    const width = state.paper ? PAPER : Math.max(280, this.host.clientWidth || 640);
    const stripHeight = strip.length ? strip.length * STRIP_ROW + 6 : 0;
    const height = HEIGHT + stripHeight + (this.categorical ? 12 : 0);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const labels = strip.length ? Math.max(...strip.map((name) => name.length)) * 6 + 10 : 0;
    const box = {
      left: Math.min(Math.max(MARGIN.left, labels), width / 3),
      right: width - MARGIN.right,
      top: MARGIN.top,
      bottom: HEIGHT - MARGIN.bottom,
    };
    this.box = box;
    const xs = [...good, ...gaps].map(x);
    const ys = good.map((i) => number(this.spec.key, i));
    const across = this.categorical
      ? bandScale(DOC.texts.shape.values.filter((label) => xs.includes(label)), box.left, box.right)
      : scale(withCeilings(this.spec, xs), box.left, box.right, state.log.x, this.spec.x === "seq_len" ? 2 : 10, 0.03);
    const up = ys.length
      ? scale(this.heights(ys, good), box.bottom, box.top, state.log.y, this.spec.unit === "bytes" ? 2 : 10, 0.06)
      : null;
    if (up) this.grid(up, box);
    this.ticksBelow(across, box, stripHeight, width);
    this.lines(good, x, across, up, box);
    this.strip(gaps, strip, x, across, box);
    this.points.sort((a, b) => a.cx - b.cx || a.cy - b.cy);
    this.halo = element("circle", { r: 9, class: "halo", visibility: "hidden" });
    this.svg.append(this.halo);
  }

  // Reference lines belong into the picture: the allowed error, and the ceilings of a roofline.
  heights(ys, good) {
    if (this.spec.unit === "error") return ys.concat(this.allowed(good));
    if (this.spec.x === "intensity") return ys.concat(this.rates(good));
    return ys;
  }

  allowed(good) {
    return [...new Set(good.map((i) => DOC.tolerances[text("dtype", i)]).filter(Boolean))];
  }

  rates(good) {
    const dtypes = new Set(good.map((i) => text("dtype", i)));
    return DOC.ceilings.flatMap((c) => [...dtypes].map((d) => c.matmul_tflops[d]).filter(Boolean));
  }

  grid(up, box) {
    for (const value of up.ticks(6)) {
      const y = up.at(value);
      this.svg.append(
        element("line", { x1: box.left, x2: box.right, y1: y, y2: y, class: "grid" }),
        element("text", { x: box.left - 7, y: y + 4, class: "tick end" }, tick[this.spec.unit](value)),
      );
    }
    this.svg.append(
      element("text", { x: 12, y: (box.top + box.bottom) / 2, class: "axis", transform: `rotate(-90 12 ${(box.top + box.bottom) / 2})` }, this.spec.axis),
    );
  }

  ticksBelow(across, box, stripHeight, width) {
    const bottom = box.bottom + stripHeight;
    this.svg.append(element("line", { x1: box.left, x2: box.right, y1: bottom, y2: bottom, class: "base" }));
    const most = Math.max(2, Math.floor((box.right - box.left) / (this.categorical ? 62 : 44)));
    for (const value of across.ticks(most)) {
      const label = this.categorical ? value : this.spec.x === "seq_len" ? lengthLabel(value) : short(value);
      this.svg.append(
        element("line", { x1: across.at(value), x2: across.at(value), y1: bottom, y2: bottom + 4, class: "base" }),
        ...this.tickLines(label).map((line, place) => element("text", { x: across.at(value), y: bottom + 17 + 13 * place, class: "tick" }, line)),
      );
    }
    const title = this.categorical ? "shape (batch, heads, length, head dim)" : this.spec.x === "intensity" ? "intensity (FLOP/byte)" : this.spec.only ? "context (tokens)" : "sequence length (tokens)";
    this.svg.append(element("text", { x: (box.left + box.right) / 2, y: bottom + (this.categorical ? 47 : 35), class: "axis" }, title));
  }

  // A shape in two lines: B4 H16 over N8k D128.
  tickLines(label) {
    if (!this.categorical) return [label];
    const words = label.split(" "), half = words.findIndex((word) => word.startsWith("N"));
    return [words.slice(0, half).join(" "), words.slice(half).join(" ")];
  }

  lines(good, x, across, up, box) {
    if (!up) return;
    this.references(good, across, up, box);
    // Where lines coincide, the thick one shows beneath the thin ones, and a full line between dashes.
    const layer = (name) => (LOOKS.get(name).width > 2 ? 0 : LOOKS.get(name).dash.length ? 2 : 1);
    const names = [...LOOKS.keys()].filter((name) => good.some((i) => text("line", i) === name)).reverse();
    names.sort((a, b) => layer(a) - layer(b));
    for (const name of names) {
      const look = LOOKS.get(name);
      const mine = good.filter((i) => text("line", i) === name);
      const group = element("g", { "data-mechanism": name });
      if (!this.categorical && this.spec.x === "seq_len" && mine.length > 1) {
        const path = medians(mine, x, (i) => number(this.spec.key, i)).map(([a, b]) => `${across.at(a)},${up.at(b)}`);
        const dash = look.dash.length ? look.dash.join(" ") : null;
        group.append(element("polyline", { points: path.join(" "), class: "line", "stroke-dasharray": dash, style: `stroke:${colour(name)};stroke-width:${look.width}` }));
      }
      const size = (look.width > 2 ? 7.4 : 6.4) + (group.childElementCount ? 0 : 1.6); // alone, without a line
      for (const i of mine) {
        const cx = across.at(x(i)), cy = up.at(number(this.spec.key, i));
        this.whiskers(group, i, cx, up, name);
        const at = element("g", { transform: `translate(${cx} ${cy})`, "data-row": i }, marker(name, size));
        group.append(at);
        this.points.push({ i, cx, cy, name });
      }
      this.svg.append(group);
    }
  }

  // The 95 % interval of the median, where it is wider than the marker.
  whiskers(group, i, cx, up, name) {
    const [low, high, mid] = [number("ci_low_ms", i), number("ci_high_ms", i), number("median_ms", i)];
    if (!(low > 0) || !["tokens_per_s", "median_ms", "step_ms"].includes(this.spec.key)) return;
    const value = number(this.spec.key, i);
    const ends = this.spec.key === "tokens_per_s" ? [(value * mid) / high, (value * mid) / low] : [low, high];
    const [y1, y2] = ends.map((end) => Math.min(this.box.bottom, Math.max(this.box.top - 8, up.at(end))));
    if (Math.abs(y1 - y2) > 8) group.append(element("line", { x1: cx, x2: cx, y1, y2, class: "whisker", style: `stroke:${colour(name)}` }));
  }

  references(good, across, up, box) {
    if (this.spec.unit === "error") {
      for (const value of this.allowed(good)) {
        const y = up.at(value);
        this.svg.append(
          element("line", { x1: box.left, x2: box.right, y1: y, y2: y, class: "reference" }),
          element("text", { x: box.right, y: y - 5, class: "tick end" }, `allowed ${say.error(value)}`),
        );
      }
    }
    if (this.spec.x !== "intensity") return;
    const [low, high] = across.domain;
    for (const ceiling of DOC.ceilings) {
      for (const rate of new Set(this.rates(good))) {
        const steps = Array.from({ length: 65 }, (_, k) => (low > 0 ? low * (high / low) ** (k / 64) : (high * k) / 64));
        const roof = steps.map((v) => `${across.at(v)},${up.at(Math.max(Math.min((v * ceiling.copy_gbps) / 1e3, rate), up.domain[0]))}`);
        this.svg.append(element("polyline", { points: roof.join(" "), class: "reference" }));
      }
      for (const rate of new Set(this.rates(good)))
        this.svg.append(element("text", { x: box.left + 6, y: up.at(rate) - 5, class: "tick start" }, `${three(rate)} TFLOP/s, ${three(ceiling.copy_gbps / 1e3)} TB/s`));
    }
  }

  strip(gaps, names, x, across, box) {
    names.forEach((name, place) => {
      const y = box.bottom + 8 + place * STRIP_ROW;
      this.svg.append(
        element("rect", { x: box.left, y: y - 5, width: box.right - box.left, height: STRIP_ROW - 2, class: "strip" }),
        element("text", { x: box.left - 7, y: y + 6, class: "tick end" }, name),
      );
      for (const i of gaps.filter((i) => text("line", i) === name)) {
        const cx = across.at(x(i)), cy = y + 2;
        this.svg.append(element("text", { x: cx, y: cy + 4, class: "gap", style: `fill:${colour(name)}`, "data-row": i }, MARKS[text("status", i)] ?? "?"));
        this.points.push({ i, cx, cy, name });
      }
    });
  }

  // --- pointing -----------------------------------------------------------------------------------------------

  point(event) {
    const frame = this.svg.getBoundingClientRect();
    const ratio = this.svg.viewBox.baseVal.width / frame.width;
    const [px, py] = [(event.clientX - frame.left) * ratio, (event.clientY - frame.top) * ratio];
    let best = -1, least = 45 ** 2;
    this.points.forEach((point, place) => {
      const distance = (point.cx - px) ** 2 + (point.cy - py) ** 2;
      if (distance < least) [best, least] = [place, distance];
    });
    this.show(best);
  }

  show(place) {
    this.current = place;
    const there = place >= 0;
    this.halo?.setAttribute("visibility", there ? "visible" : "hidden");
    if (!there) return hideTip();
    const { i, cx, cy, name } = this.points[place];
    this.halo.setAttribute("cx", cx);
    this.halo.setAttribute("cy", cy);
    this.halo.setAttribute("style", `stroke:${colour(name)}`);
    const frame = this.svg.getBoundingClientRect();
    const ratio = frame.width / this.svg.viewBox.baseVal.width;
    showTip(i, frame.left + cx * ratio, frame.top + cy * ratio);
  }

  leave() {
    if (this.halo) this.show(-1);
  }

  open() {
    if (this.current >= 0) openRow(this.points[this.current].i);
  }

  // Left and right stay with a mechanism; up and down take the next one at about the same place.
  key(event) {
    if (!this.points.length) return;
    const here = this.points[this.current];
    const moves = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key === "Enter") this.open();
    else if (event.key === "Escape") this.show(-1);
    else if (event.key in moves) {
      const [dx, dy] = moves[event.key];
      const next = here ? this.neighbour(here, dx, dy) : this.points[0];
      if (next) this.show(this.points.indexOf(next));
    } else return;
    event.preventDefault();
  }

  neighbour(here, dx, dy) {
    if (dx) {
      const mine = this.points.filter((point) => point.name === here.name);
      return mine[mine.indexOf(here) + dx];
    }
    const others = this.points.filter((point) => (point.cy - here.cy) * dy > 0.5);
    const distance = (point) => Math.abs(point.cx - here.cx) * 4 + Math.abs(point.cy - here.cy);
    return others.sort((a, b) => distance(a) - distance(b))[0];
  }
}

// Several runs of a case make one line: through their medians.
function medians(rows, x, y) {
  const groups = new Map();
  for (const i of rows) groups.set(x(i), [...(groups.get(x(i)) ?? []), y(i)]);
  return [...groups].sort((a, b) => a[0] - b[0]).map(([at, values]) => {
    const sorted = values.sort((a, b) => a - b), half = sorted.length >> 1;
    return [at, sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2];
  });
}

function withCeilings(spec, xs) {
  if (spec.x !== "intensity") return xs;
  const knees = DOC.ceilings.flatMap((c) => Object.values(c.matmul_tflops).map((rate) => (rate * 1e3) / c.copy_gbps));
  return xs.concat(knees.length ? [Math.max(...knees)] : []);
}

// --- scales ----------------------------------------------------------------------------------------------------

function bandScale(labels, from, to) {
  const step = (to - from) / Math.max(labels.length, 1);
  return {
    at: (label) => from + step * (labels.indexOf(label) + 0.5),
    ticks: (most) => labels.filter((_, place) => place % Math.ceil(labels.length / most) === 0),
    domain: labels,
  };
}

function scale(values, from, to, log, base, pad) {
  let low = Math.min(...values), high = Math.max(...values);
  if (!log) {
    [low, high] = [0, high * (1 + pad)];
    return { at: (v) => from + ((to - from) * (v - low)) / (high - low), ticks: (most) => linearTicks(high, most, base), domain: [low, high] };
  }
  // Noise must not look like a slope: a range of a factor 4 at least.
  const least = Math.max(0, Math.log(4) - Math.log(high / low)) / 2;
  const room = (Math.log(high / low) + 2 * least) * pad + least;
  const [a, b] = [Math.log(low) - room, Math.log(high) + room];
  return {
    at: (v) => from + ((to - from) * (Math.log(v) - a)) / (b - a),
    ticks: (most) => logTicks(Math.exp(a), Math.exp(b), base, most),
    domain: [Math.exp(a), Math.exp(b)],
  };
}

function linearTicks(high, most, base) {
  const raw = high / most;
  const power = base ** Math.floor(Math.log(raw) / Math.log(base) + 1e-9);
  const step = base === 2 ? (power >= raw ? power : power * 2) : [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  return Array.from({ length: Math.floor(high / step + 1e-9) + 1 }, (_, k) => k * step);
}

function logTicks(low, high, base, most) {
  const [first, last] = [low, high].map((v) => Math.log(v) / Math.log(base));
  const powers = [];
  for (let n = Math.floor(first); n <= Math.ceil(last); n++) powers.push(base ** n);
  const sets = base === 10 ? [[1, 2, 5], [1, 3]].map((steps) => powers.flatMap((p) => steps.map((s) => p * s))) : [];
  for (let step = 1; step <= powers.length; step++) sets.push(powers.filter((_, place) => (powers.length - 1 - place) % step === 0));
  const inside = sets.map((set) => set.filter((v) => v >= low * 0.9999 && v <= high * 1.0001));
  return inside.find((set) => set.length <= most && set.length) ?? inside[inside.length - 1];
}
