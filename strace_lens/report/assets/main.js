// Each result a panel; one slider, over the sizes measured in any of them, moves all.

const results = JSON.parse(document.getElementById("results").textContent);
const byId = (id) => document.getElementById(id);

/** The box that follows the pointer and is kept inside the window. */
const tip = {
  box: byId("tip"),
  show(event, lines) {
    this.box.replaceChildren(...lines.map((line) => element("div", {}, line)));
    this.box.hidden = false;
    const { offsetWidth: width, offsetHeight: height } = this.box;
    const x = Math.min(event.clientX + 14, window.innerWidth - width - 8);
    const y = event.clientY + 16 + height > window.innerHeight ? event.clientY - height - 12 : event.clientY + 16;
    this.box.style.left = `${Math.max(8, x)}px`;
    this.box.style.top = `${Math.max(8, y)}px`;
  },
  hide() {
    this.box.hidden = true;
  },
};
const say = (text) => { byId("said").textContent = text; };

const sizes = [...new Set(results.flatMap((r) => r.sizes.map((row) => row.size)))].sort((a, b) => a - b);
const nearest = (values, log) => values.reduce((best, value, i) =>
  Math.abs(Math.log10(value) - log) < Math.abs(Math.log10(values[best]) - log) - 1e-12 ? i : best, 0);

/** How a result was made, folded away. */
function facts(result) {
  const { metadata: made } = result;
  const rows = {
    "edges of the graph": whole(result.edges),
    "importance, order": `${made.importance ?? "?"}, ${made.order ?? "?"}`,
    "ablated edges carry": result.ablation,
    density: fixed(result.density),
    "entropy of the model's output": `${fixed(result.entropy)} nats`,
    head: `top-${result.head} nucleus, mass ${fixed(result.head_mass)}`,
    "largest logit difference at full mask": result.logit_gap.toExponential(1),
    seed: String(result.seed),
    versions: Object.entries(made.versions ?? {}).map(([k, v]) => `${k} ${v}`).join(", ") || "unknown",
  };
  return element("details", {}, element("summary", {}, "How this was made"),
    element("dl", {}, ...Object.entries(rows).flatMap(([k, v]) => [element("dt", {}, k), element("dd", {}, v)])));
}

/** A panel of one result; its `show(log)` shows the measured size nearest to a logarithm of s. */
async function makePanel(result, number, pick) {
  const edges = await unpackEdges(result);
  const status = element("p", { class: "status" });
  const drawing = element("div", { class: "column wide" });
  const side = element("div", { class: "column side" });
  const panel = element("section", { class: "panel", "aria-labelledby": `title-${number}` },
    element("h2", { id: `title-${number}` }, `${result.metadata.model ?? "a model without a name"}, edges by ` +
      `${result.metadata.importance ?? "?"}, ${result.metadata.order ?? "?"}`),
    element("p", { class: "tokens" }, ...result.tokens.map((t) => element("span", {}, visible(t, 40)))),
    status, element("div", { class: "columns" }, drawing, side), facts(result));
  byId("panels").append(panel);
  const kinds = result.shape.mlp ? KINDS : KINDS.slice(0, 2);
  drawing.append(element("h3", {}, "Trace"), legend(Object.fromEntries(kinds.map((k) => [k, KIND_NAMES[k]]))));
  const graph = makeGraph(drawing, result, edges, tip, say);
  const [prediction, density, composition] = ["prediction", "density", "composition"].map((name) => {
    const block = element("div", { class: `block ${name}` });
    side.append(block);
    return block;
  });
  const parts = [
    makePrediction(prediction, result),
    makeDensity(density, result, pick),
    makeComposition(composition, result, pick),
  ];
  const own = result.sizes.map((row) => row.size);
  return {
    graph,
    show(log) {
      const index = nearest(own, log), row = result.sizes[index];
      graph.show(row.edges);
      parts.forEach((part) => part(index));
      const cut = row.edges > edges.count ? ` (the first ${whole(edges.count)} are drawn)` : "";
      status.textContent = `${sizeText(row.size)}: ${edgeText(row.edges)} of ${whole(result.edges)}${cut}; ` +
        `TV ${fixed(row.tv)}; next token ${quoted(row.top[0])}, the model's ${quoted(result.sizes.at(-1).top_tokens[0][0])}`;
      return status.textContent;
    },
  };
}

/** Set up the slider, its buttons and keys; `change(log)` is called with each new size. */
function makeSlider(change) {
  const slider = byId("size");
  slider.min = Math.log10(sizes[0]);
  slider.max = Math.log10(sizes.at(-1));
  byId("measured").append(...sizes.map((s) => element("option", { value: Math.log10(s) })));
  const go = (index) => {
    const size = sizes[Math.max(0, Math.min(sizes.length - 1, index))];
    slider.value = Math.log10(size);
    byId("chosen").textContent = sizeText(size);
    slider.setAttribute("aria-valuetext", change(Math.log10(size)));
  };
  const index = () => nearest(sizes, Number(slider.value));
  const pick = (log) => go(nearest(sizes, log));
  slider.addEventListener("input", () => pick(Number(slider.value)));
  slider.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -5, PageUp: 5,
      Home: -sizes.length, End: sizes.length };
    if (!(event.key in steps)) return;
    event.preventDefault();
    go(index() + steps[event.key]);
  });
  byId("smaller").addEventListener("click", () => go(index() - 1));
  byId("larger").addEventListener("click", () => go(index() + 1));
  const play = byId("play");
  let timer = 0;
  const pause = () => {
    clearInterval(timer);
    timer = 0;
    play.textContent = "Play";
    play.setAttribute("aria-pressed", "false");
  };
  play.addEventListener("click", () => {
    if (timer) return pause();
    if (index() === sizes.length - 1) go(0);
    play.textContent = "Pause";
    play.setAttribute("aria-pressed", "true");
    timer = setInterval(() => (index() === sizes.length - 1 ? pause() : go(index() + 1)), 600);
  });
  return { pick, go };
}

/** Dark or light: the reader's own choice, else the system's. */
function makeTheme(redraw) {
  const button = byId("theme"), system = matchMedia("(prefers-color-scheme: dark)");
  const set = (dark) => {
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    button.setAttribute("aria-pressed", String(dark));
    redraw();
  };
  set(system.matches);
  system.addEventListener("change", () => set(system.matches));
  button.addEventListener("click", () => set(document.documentElement.dataset.theme !== "dark"));
}

async function start() {
  const panels = [];
  const slider = makeSlider((log) => panels.map((panel) => panel.show(log)).join("; "));
  for (const [number, result] of results.entries()) panels.push(await makePanel(result, number, slider.pick));
  if (panels.length > 1) byId("panels").classList.add("several");
  const lay = () => panels.forEach((panel) => panel.graph.lay());
  makeTheme(lay);
  // At first the smallest size from which the first result's prediction is right, or all of it.
  const right = results[0].sizes.find((row, i, all) => all.slice(i).every((r) => r.top1));
  slider.pick(Math.log10((right ?? results[0].sizes.at(-1)).size));
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    lay();
  });
  window.explorer = { panels, pick: (size) => slider.pick(Math.log10(size)) };
  document.documentElement.dataset.ready = "true";
}

start().catch((error) => {
  byId("notice").textContent = `The results could not be shown: ${error.message}. A browser of 2023 or later is needed.`;
  byId("notice").hidden = false;
  throw error;
});
