// The density curve and the composition, as small SVG charts with a cursor at the size shown.

const CHART = { width: 400, height: 190, left: 60, right: 14, top: 10, bottom: 34 };

/** Scales of a chart over the logarithm of s, with its axes drawn; values go from 0 to 1. */
function makeChart(result, title, label, format) {
  const { width, height, left, right, top, bottom } = CHART;
  const logs = result.sizes.map((row) => Math.log10(row.size));
  const first = Math.min(...logs), last = Math.max(...logs, first + 0.1);
  const x = (log) => left + ((log - first) / (last - first)) * (width - left - right);
  const y = (value) => height - bottom - value * (height - top - bottom);
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", class: "chart" },
    svg("title", {}, title));
  const axes = svg("g", { class: "axes" });
  for (const value of [0, 0.5, 1]) {
    axes.append(
      svg("line", { x1: left, x2: width - right, y1: y(value), y2: y(value) }),
      svg("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, format(value)));
  }
  for (let decade = Math.ceil(first - 1e-9); decade <= last + 1e-9; decade++) {
    axes.append(
      svg("line", { x1: x(decade), x2: x(decade), y1: y(0), y2: y(0) + 4, class: "tick" }),
      svg("text", { x: x(decade), y: y(0) + 16, "text-anchor": "middle" }, digits(10 ** decade, 1)));
  }
  axes.append(
    svg("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, "relative size s (log)"),
    svg("text", { x: 11, y: (top + height - bottom) / 2, "text-anchor": "middle",
      transform: `rotate(-90 11 ${(top + height - bottom) / 2})` }, label));
  const cursor = svg("line", { class: "cursor", y1: y(1), y2: y(0) });
  chart.append(axes);
  return {
    chart,
    x,
    y,
    logs,
    finish: () => chart.append(cursor),
    move: (log) => {
      cursor.setAttribute("x1", x(log));
      cursor.setAttribute("x2", x(log));
    },
    /** The logarithm of s under a click. */
    logAt: (event) => {
      const box = chart.getBoundingClientRect();
      const at = ((event.clientX - box.left) / box.width) * width;
      return first + ((at - left) / (width - left - right)) * (last - first);
    },
  };
}

/** A line through the values that are there. */
function curveLine(chart, values, name) {
  const points = values.map((v, i) => (v === null ? null : `${chart.x(chart.logs[i])},${chart.y(v)}`));
  return svg("polyline", { class: `line ${name}`, points: points.filter((p) => p !== null).join(" ") });
}

/** A legend: a swatch and a name for each thing. */
function legend(names) {
  return element("p", { class: "legend" }, ...Object.entries(names).map(([name, text]) =>
    element("span", {}, element("i", { class: `swatch ${name}` }), text)));
}

/** TV of the trace and its controls over sizes, the phases as bands. */
function makeDensity(parent, result, pick) {
  const chart = makeChart(result, "Total variation by relative size", "total variation", (v) => String(v));
  for (const phase of result.phases) {
    const start = chart.x(Math.log10(phase.start)), stop = chart.x(Math.log10(phase.stop));
    chart.chart.append(svg("rect", { class: `band ${phase.name}`, x: start, y: chart.y(1),
      width: Math.max(0, stop - start), height: chart.y(0) - chart.y(1) },
    svg("title", {}, `${phase.name}: s = ${digits(phase.start, 2)} to ${digits(phase.stop, 2)}`)));
  }
  const shown = { tv: "trace" };
  if (result.sizes.some((row) => row.random_tv !== null)) {
    Object.assign(shown, { random_tv: "random", inverse_tv: "all but the trace" });
  }
  for (const name of Object.keys(shown).reverse()) {
    chart.chart.append(curveLine(chart, result.sizes.map((row) => row[name]), name));
  }
  chart.finish();
  chart.chart.addEventListener("click", (event) => pick(chart.logAt(event)));
  const bands = Object.fromEntries(result.phases.filter((p) => p.name !== "plateau").map((p) => [p.name, p.name]));
  const dot = svg("circle", { class: "dot", r: 4 });
  chart.chart.append(dot);
  parent.append(element("h3", {}, "Density curve"), chart.chart, legend({ ...shown, ...bands }));
  return (index) => {
    chart.move(chart.logs[index]);
    dot.setAttribute("cx", chart.x(chart.logs[index]));
    dot.setAttribute("cy", chart.y(result.sizes[index].tv));
  };
}

/** Share of each kind of edge over sizes, and how many edges of each layer the trace holds. */
function makeComposition(parent, result, pick) {
  const chart = makeChart(result, "Share of edges of each kind by relative size", "share of edges", (v) => `${100 * v} %`);
  const kinds = result.shape.mlp ? KINDS : KINDS.slice(0, 2);
  const rows = result.sizes.map((row, i) => ({ ...row, log: chart.logs[i] })).filter((row) => row.edges > 0);
  const below = new Float64Array(rows.length);
  for (const kind of kinds) {
    const low = rows.map((row, i) => `${chart.x(row.log)},${chart.y(below[i])}`);
    rows.forEach((row, i) => { below[i] += row[kind]; });
    const high = rows.map((row, i) => `${chart.x(row.log)},${chart.y(below[i])}`);
    chart.chart.append(svg("polygon", { class: `area ${kind}`, points: [...low, ...high.reverse()].join(" ") }));
  }
  chart.finish();
  chart.chart.addEventListener("click", (event) => pick(chart.logAt(event)));
  const said = element("p", { class: "numbers" });
  const bars = svg("svg", { role: "img", class: "chart" });
  parent.append(element("h3", {}, "Composition"), chart.chart,
    legend(Object.fromEntries(kinds.map((k) => [k, KIND_NAMES[k]]))), said, bars);
  return (index) => {
    chart.move(chart.logs[index]);
    const row = result.sizes[index];
    said.textContent = row.edges === 0 ? "no edges" : kinds.map((k) => `${KIND_NAMES[k]} ${percent(row[k])}`).join(", ") +
      `; mean layer ${digits(row.mean_layer)} of 0 to ${result.shape.layers - 1}`;
    layerBars(bars, row.counts, kinds);
  };
}

/** Edges of the trace by layer, the kinds on top of one another. */
function layerBars(bars, counts, kinds) {
  const { width, left, right } = CHART;
  const height = 110, bottom = 30, layers = counts[0].length;
  const totals = counts[0].map((_, layer) => counts.reduce((sum, kind) => sum + kind[layer], 0));
  const most = Math.max(1, ...totals);
  const step = (width - left - right) / layers;
  bars.setAttribute("viewBox", `0 0 ${width} ${height}`);
  bars.replaceChildren(svg("title", {}, "Edges of the trace by layer"));
  const axes = svg("g", { class: "axes" },
    svg("line", { x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
    svg("text", { x: left - 6, y: 14, "text-anchor": "end" }, whole(Math.max(0, ...totals))),
    svg("text", { x: left - 6, y: height - bottom, "text-anchor": "end" }, "0"),
    svg("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, "edges by layer"));
  for (const layer of new Set([0, Math.floor(layers / 2), layers - 1])) {
    axes.append(svg("text", { x: left + (layer + 0.5) * step, y: height - bottom + 13, "text-anchor": "middle" }, String(layer)));
  }
  bars.append(axes);
  for (let layer = 0; layer < layers; layer++) {
    let top = height - bottom;
    for (const kind of kinds) {
      const count = counts[KINDS.indexOf(kind)][layer];
      const tall = (count / most) * (height - bottom - 10);
      top -= tall;
      bars.append(svg("rect", { class: `bar ${kind}`, x: left + layer * step + 0.1 * step, y: top,
        width: 0.8 * step, height: tall },
      svg("title", {}, `layer ${layer}: ${whole(count)} ${KIND_NAMES[kind]}`)));
    }
  }
}
