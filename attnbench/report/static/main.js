// The page: controls, legend, charts, figures to take away, theme.

const charts = [];

function controls(host) {
  for (const selector of DOC.selectors) {
    if (selector.values.length === 1) {
      host.append(element("label", {}, element("span", {}, selector.label), element("b", {}, DOC.workloads[selector.values[0]] ?? selector.values[0])));
      continue;
    }
    const options = [...(selector.open ? [["", "all"]] : []), ...selector.values.map((value) => [value, DOC.workloads[value] ?? value])];
    const select = element("select", {
      id: `choose-${selector.key}`,
      onchange: (event) => {
        state.chosen[selector.key] = event.target.value === "" ? null : event.target.value;
        changed();
      },
    }, ...options.map(([value, words]) => element("option", { value }, words)));
    select.value = state.chosen[selector.key] ?? "";
    host.append(element("label", {}, element("span", {}, selector.label), select));
  }
  for (const axis of DOC.listed ? ["y"] : ["x", "y"]) {
    const select = element("select", { id: `scale-${axis}`, onchange: (event) => { state.log[axis] = event.target.value === "log"; changed(); } },
      element("option", { value: "log" }, "logarithmic"), element("option", { value: "linear" }, "linear"));
    host.append(element("label", {}, element("span", {}, `${axis} axis`), select));
  }
}

function legend(host) {
  const buttons = DOC.mechanisms.map((look) =>
    element("button", {
      class: "toggle", "aria-pressed": "true", "data-mechanism": look.name, title: "Shift and click: this one alone",
      onclick: (event) => toggle(look.name, event.shiftKey),
    },
    element("svg", { viewBox: "0 0 34 14", "aria-hidden": "true" },
      element("line", { x1: 1, x2: 33, y1: 7, y2: 7, class: "line", "stroke-dasharray": look.dash.length ? look.dash.join(" ") : null, style: `stroke:${colour(look.name)};stroke-width:${look.width}` }),
      element("g", { transform: "translate(17 7)" }, marker(look.name, 5.4))),
    look.name));
  const all = element("button", { class: "toggle all", onclick: () => { state.hidden.clear(); changed(); } }, "show all");
  host.append(...buttons, all);
  listeners.push(() => {
    buttons.forEach((button) => button.setAttribute("aria-pressed", String(!state.hidden.has(button.dataset.mechanism))));
    all.hidden = !state.hidden.size;
  });
  all.hidden = true;
}

function toggle(name, alone) {
  const names = [...LOOKS.keys()];
  if (alone) {
    const already = !state.hidden.has(name) && state.hidden.size === names.length - 1;
    state.hidden = new Set(already ? [] : names.filter((other) => other !== name));
  } else if (!state.hidden.delete(name)) state.hidden.add(name);
  changed();
}

function addCharts(host) {
  for (const spec of DOC.charts) {
    const plot = element("div", { class: "plot" });
    const take = spec.figure ? element("div", { class: "take" }) : null;
    host.append(element("figure", { class: "card", id: `chart-${spec.key}` },
      element("figcaption", {}, element("h3", {}, spec.title), take), plot, spec.note ? element("p", { class: "note" }, spec.note) : null));
    charts.push(new Chart(spec, plot));
    if (take) {
      const offer = () => take.replaceChildren(...figuresOf(spec, spec.only ?? state.chosen.workload).map(downloadButton));
      listeners.push(offer);
      offer();
    }
  }
  const draw = () => charts.forEach((chart) => chart.draw());
  listeners.push(draw);
  draw();
  for (const [event, paper] of [["beforeprint", true], ["afterprint", false]])
    addEventListener(event, () => { state.paper = paper; draw(); });
  let width = host.clientWidth;
  new ResizeObserver(() => {
    if (host.clientWidth !== width) { width = host.clientWidth; draw(); }
  }).observe(host);
}

// --- figures to take away: the files that `attnbench plot` writes --------------------------------------------

const FIGURES = JSON.parse(document.getElementById("figures").textContent);

function figuresOf(spec, workload) {
  const stem = `${spec.figure}.${workload.replace(/[^A-Za-z0-9_-]/g, "_")}`;
  return Object.keys(FIGURES).filter((name) => name.startsWith(stem) && /^(-\d+)?\.svg$/.test(name.slice(stem.length)));
}

async function unpacked(name) {
  const bytes = Uint8Array.from(atob(FIGURES[name]), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

const downloadButton = (name) => element("button", { class: "download", title: "The figure as attnbench plot writes it, with all panels", onclick: () => download(name) }, `↓ ${name}`);

async function download(name) {
  const url = URL.createObjectURL(new Blob([await unpacked(name)], { type: "image/svg+xml" }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

// --- theme -----------------------------------------------------------------------------------------------------

function theme(button) {
  const dark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const label = () => (button.textContent = dark() ? "☀ light" : "☾ dark");
  button.addEventListener("click", () => { document.documentElement.dataset.theme = dark() ? "light" : "dark"; label(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  label();
}

document.body.append(tip, dialog);
theme(document.getElementById("theme"));
controls(document.getElementById("choose"));
legend(document.getElementById("legend"));
addCharts(document.getElementById("charts"));
new Table(document.getElementById("rows"));
document.querySelectorAll("table[data-filter]").forEach(filterable);
document.querySelectorAll("table.sortable:not(.rows)").forEach(sortable);
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
addEventListener("scroll", hideTip, { passive: true });
document.documentElement.dataset.ready = "yes";
