// The tables: all rows, sorted and filtered; the details of one; and sorting of tables that came with the page.

const COLUMNS = [
  ["status", "status", (i) => text("status", i)],
  ["mechanism", "mechanism", (i) => text("line", i)],
  ["workload", "workload", (i) => text("workload", i)],
  ["batch", "batch", (i) => number("batch", i), say.count],
  ["heads", "heads", (i) => number("heads", i), say.count],
  ["tokens", "length", (i) => number("seq_len", i), say.count],
  ["dim", "head dim", (i) => number("head_dim", i), say.count],
  ["dtype", "dtype", (i) => text("dtype", i)],
  ["time", "time", (i) => number("median_ms", i), say.time],
  ["interval", "±", (i) => halfWidth(i), (v) => `${(v * 100).toFixed(v < 0.0995 ? 1 : 0)} %`],
  ["speed", "tokens/s", (i) => number("tokens_per_s", i), (v) => say.rate(v).replace(" tokens/s", "")],
  ["memory", "peak memory", (i) => number("peak_bytes", i), say.bytes],
  ["error", "error", (i) => number("rel_err", i), say.error],
  ["share", "of bound", (i) => number("roofline", i), say.share],
  ["energy", "J/M tokens", (i) => number("joules_per_mtok", i), say.plain],
  ["clock", "SM MHz", (i) => number("sm_clock_mhz", i), say.count],
  ["reason", "reason", (i) => text("reason", i)],
].filter(([, , value]) => ROWS.some((i) => value(i) !== null));

function halfWidth(i) {
  const [low, high, mid] = [number("ci_low_ms", i), number("ci_high_ms", i), number("median_ms", i)];
  return low === null || high === null || !(mid > 0) ? null : Math.max(high - mid, mid - low) / mid;
}

const FIELDS = [
  ["Case", [
    ["case", caseId], ["run", (i) => text("run_id", i)], ["semantics", (i) => text("semantics", i)],
    ["window", unit("window", (v) => `${say.count(v)} tokens`)],
    ["provider", (i) => text("provider", i)], ["device", (i) => text("device", i)], ["started", startedAt],
    ["status", (i) => text("status", i)], ["reason", (i) => text("reason", i)],
  ]],
  ["Time", [
    ["median", unit("median_ms", say.time)],
    ["95 % interval", (i) => range(i, "ci_low_ms", "ci_high_ms")],
    ["10th to 90th percentile", (i) => range(i, "p10_ms", "p90_ms")],
    ["samples", unit("samples", say.count)], ["first call", unit("first_call_ms", say.time)],
    ["speed", unit("tokens_per_s", say.rate)], ["rate", unit("tflops", (v) => `${three(v)} TFLOP/s`)],
    ["bandwidth", unit("gbps", (v) => `${three(v)} GB/s`)], ["share of the bound", unit("roofline", say.share)],
    ["energy of a call", unit("energy_j", (v) => `${three(v)} J`)],
    ["energy", unit("joules_per_mtok", (v) => `${three(v)} J per million tokens`)],
  ]],
  ["Memory", ["input", "output", "saved", "state", "workspace", "peak", "reserved"].map((name) => [name, unit(`${name}_bytes`, say.bytes)])],
  ["Relative error", ["o", "dq", "dk", "dv"].map((name) => [name, unit(`rel_err_${name}`, say.error)])],
  ["Device", [
    ["SM clock", unit("sm_clock_mhz", (v) => `${say.count(v)} MHz`)], ["memory clock", unit("mem_clock_mhz", (v) => `${say.count(v)} MHz`)],
    ["power", unit("power_w", (v) => `${three(v)} W`)], ["temperature", unit("temperature_c", (v) => `${v} °C`)],
    ["throttled by", (i) => text("throttle", i)], ["kernels", (i) => text("kernels", i)], ["configuration", (i) => text("config", i)],
  ]],
];

function unit(name, words) {
  return (i) => (number(name, i) === null ? null : words(number(name, i)));
}

function range(i, low, high) {
  const ends = [number(low, i), number(high, i)];
  return ends.includes(null) ? null : ends.map(say.time).join(" to ");
}

// --- the tip and the details -----------------------------------------------------------------------------------

const tip = element("div", { class: "tip", role: "status", hidden: true });
const TIP_FIELDS = ["status", "reason", "median", "95 % interval", "samples", "speed", "peak", "share of the bound", "energy", "SM clock", "throttled by", "provider"];

function showTip(i, x, y) {
  const fields = new Map(FIELDS.flatMap(([, inner]) => inner));
  const lines = TIP_FIELDS.map((name) => [name, fields.get(name)(i)]).filter(([, value]) => value !== null);
  const error = number("rel_err", i);
  if (error !== null) lines.splice(-1, 0, ["largest error", say.error(error)]);
  tip.replaceChildren(
    element("strong", {}, caseId(i)),
    element("dl", {}, ...lines.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])),
  );
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = x + 16 + width > innerWidth ? x - width - 16 : x + 16;
  const top = y + 12 + height > innerHeight ? y - height - 12 : y + 12;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, top)}px`;
}

function hideTip() {
  tip.hidden = true;
}

const dialog = element("dialog", { "aria-label": "One row", onclick: (event) => event.target === dialog && dialog.close() });

function openRow(i) {
  hideTip();
  const parts = FIELDS.map(([title, fields]) => {
    const known = fields.map(([name, value]) => [name, value(i)]).filter(([, value]) => value !== null);
    return known.length
      ? element("section", {}, element("h3", {}, title), element("dl", {}, ...known.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])))
      : null;
  });
  dialog.replaceChildren(
    element("div", { class: "inner" }, element("button", { class: "close", onclick: () => dialog.close(), "aria-label": "Close" }, "×"), element("h2", {}, caseId(i)), ...parts),
  );
  dialog.showModal();
}

// --- all rows --------------------------------------------------------------------------------------------------

class Table {
  constructor(host) {
    this.body = element("tbody");
    this.rows = [];
    this.count = element("span", { class: "count", "aria-live": "polite" });
    this.words = element("input", { type: "search", placeholder: "words in any column", "aria-label": "Filter rows by words", oninput: () => this.filter() });
    const statuses = DOC.texts.status.values;
    this.status = element("select", { "aria-label": "Filter rows by status", onchange: () => this.filter() }, element("option", { value: "" }, "every status"), ...statuses.map((name) => element("option", { value: name }, name)));
    this.only = element("input", { type: "checkbox", onchange: () => this.filter() });
    const heads = COLUMNS.map(([key, title, , words]) => element("th", { scope: "col", class: words ? "number" : null, "data-key": key }, title));
    const table = element("table", { class: "rows sortable" }, element("thead", {}, element("tr", {}, ...heads)), this.body);
    host.append(
      element("div", { class: "controls" }, this.words, this.status, element("label", {}, this.only, " only what the charts show"), this.count),
      element("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "All rows" }, table),
    );
    sortable(table);
    this.grow(0);
    listeners.push(() => this.only.checked && this.filter());
    addEventListener("beforeprint", () => this.grow(this.rows.length, DOC.rows));
  }

  // The first screenful at once, the rest when the page is idle: thousands of rows delay no first paint.
  grow(from, step = 60) {
    const to = Math.min(from + step, DOC.rows);
    for (let i = from; i < to; i++) this.rows.push(this.row(i));
    this.body.append(...this.rows.slice(from, to));
    this.filter();
    if (to < DOC.rows) {
      const later = globalThis.requestIdleCallback ?? ((work) => setTimeout(work, 20));
      later(() => this.rows.length === to && this.grow(to, 400));
    }
  }

  row(i) {
    const cells = COLUMNS.map(([key, , value, words]) => {
      const raw = value(i);
      const said = raw === null ? "" : words ? words(raw) : raw;
      const content = key === "mechanism" ? element("button", { class: "link", onclick: () => openRow(i), style: `--swatch:${colour(raw)}` }, said) : said;
      return element("td", { class: words ? "number" : key === "reason" ? "reason" : null, "data-v": raw === null ? "" : raw, title: key === "reason" ? raw : null }, content);
    });
    return element("tr", { class: text("status", i) === "ok" ? null : "failed", "data-i": i }, ...cells);
  }

  // A row in words; what it also says of itself in its details can be searched for.
  said(i) {
    this.texts ??= [];
    this.texts[i] ??= [caseId(i), ...["status", "reason", "provider", "device", "run_id", "kernels", "throttle"].map((name) => text(name, i) ?? "")].join(" ").toLowerCase();
    return this.texts[i];
  }

  filter() {
    const words = this.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (i) =>
      (!this.status.value || text("status", i) === this.status.value) &&
      (!this.only.checked || isShown(i)) &&
      words.every((word) => this.said(i).includes(word));
    for (const row of this.rows) row.hidden = !fits(Number(row.dataset.i));
    const kept = ROWS.filter(fits).length;
    this.count.textContent = kept === DOC.rows ? `${say.count(kept)} rows` : `${say.count(kept)} of ${say.count(DOC.rows)} rows`;
  }
}

// A choice of one column's values, for a table that came with the page.
function filterable(table) {
  const place = [...table.tHead.rows[0].cells].findIndex((head) => head.textContent === table.dataset.filter);
  const rows = [...table.tBodies[0].rows];
  const counts = new Map();
  for (const row of rows) counts.set(row.cells[place].textContent, (counts.get(row.cells[place].textContent) ?? 0) + 1);
  const select = element("select", {
    "aria-label": `Filter by ${table.dataset.filter}`,
    onchange: () => rows.forEach((row) => { row.hidden = select.value !== "" && row.cells[place].textContent !== select.value; }),
  }, element("option", { value: "" }, `every ${table.dataset.filter}`), ...[...counts].map(([value, count]) => element("option", { value }, `${value} (${say.count(count)})`)));
  table.parentElement.before(element("div", { class: "controls" }, select));
}

// Heads become buttons. Numbers sort as numbers, unknown values last, either way.
function sortable(table) {
  const heads = [...table.querySelectorAll("thead th")];
  heads.forEach((head, place) => {
    const button = element("button", { onclick: () => sort(place) }, ...head.childNodes);
    head.append(button);
  });

  function sort(place) {
    const up = heads[place].getAttribute("aria-sort") !== "ascending";
    heads.forEach((head, other) => (other === place ? head.setAttribute("aria-sort", up ? "ascending" : "descending") : head.removeAttribute("aria-sort")));
    const body = table.tBodies[0];
    const numeric = heads[place].classList.contains("number");
    const value = (row) => {
      const raw = row.cells[place].dataset.v ?? row.cells[place].textContent;
      return raw === "" ? null : numeric ? Number(raw) : raw;
    };
    const keyed = [...body.rows].map((row) => [value(row), row]);
    keyed.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      const order = numeric ? a - b : a < b ? -1 : a > b ? 1 : 0;
      return up ? order : -order;
    });
    body.append(...keyed.map(([, row]) => row));
  }
}
