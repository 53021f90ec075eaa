// Each result a panel, side by side or one at a time; one slider, over the sizes measured in those
// that are shown, moves all.

const { results, names, lenses } = JSON.parse(document.getElementById("results").textContent);
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
const READABLE = 400; // edges on the page when it opens
const say = (text) => { byId("said").textContent = text; };

let sizes = []; // of the results shown, rising
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
function makePanel(result, edges, lens, number, choice, pick, chosen) {
  const status = element("p", { class: "status" });
  const drawing = element("div", { class: "column wide" });
  const side = element("div", { class: "column side" }), charts = element("div", { class: "column side charts" });
  const panel = element("section", { class: "panel", "aria-labelledby": `title-${number}` },
    element("h2", { id: `title-${number}` }, `${result.metadata.model ?? "a model without a name"}, edges by ` +
      `${result.metadata.importance ?? "?"}, ${result.metadata.order ?? "?"}`),
    element("p", { class: "tokens" }, ...result.tokens.map((t) => element("span", {}, visible(t, 40)))),
    status, element("div", { class: "columns" }, drawing, side, charts), facts(result));
  byId("panels").append(panel);
  const kinds = result.shape.mlp ? KINDS : KINDS.slice(0, 2);
  drawing.append(element("div", { class: "bar" }, element("h3", {}, "Trace"),
    legend(Object.fromEntries(kinds.map((k) => [k, KIND_NAMES[k]])))));
  const tools = element("div");
  const graph = makeGraph(drawing, tools, result, edges, lens, choice, tip, say, chosen);
  const controls = makeControls(tools, result, edges, choice, graph, chosen);
  const [grid, prediction, density, composition] = ["grid", "prediction", "density", "composition"].map((name, i) => {
    const block = element("div", { class: `block ${name}` });
    (i < 2 ? side : charts).append(block);
    return block;
  });
  const heads = makeHeads(grid, result, edges, choice, tip, say, chosen);
  const pattern = makePattern(grid, result, lens, choice, tip);
  const parts = [
    makePrediction(prediction, result),
    makeDensity(density, result, pick),
    makeComposition(composition, result, pick),
  ];
  const own = result.sizes.map((row) => row.size);
  return {
    panel,
    result,
    graph,
    heads,
    pattern,
    lay() {
      graph.lay();
      heads.lay();
      pattern.lay();
    },
    show(log, typing = false) {
      const index = nearest(own, log), row = result.sizes[index];
      heads.show(graph.show(row.edges));
      pattern.show();
      controls.show(!typing);
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
  /** Move over the sizes of some results; the phases of the first are marked below. */
  const over = (shown) => {
    sizes = [...new Set(shown.flatMap((r) => r.sizes.map((row) => row.size)))].sort((a, b) => a - b);
    slider.min = Math.log10(sizes[0]);
    slider.max = Math.log10(sizes.at(-1));
    byId("measured").replaceChildren(...sizes.map((s) => element("option", { value: Math.log10(s) })));
    markPhases(shown[0]);
  };
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
  return { pick, go, over, log: () => Number(slider.value) };
}

/** The phases of a result as bands under the slider, each as wide as its sizes. */
function markPhases(result) {
  const first = Math.log10(sizes[0]), wide = Math.log10(sizes.at(-1)) - first;
  const part = (size) => 100 * Math.max(0, Math.min(1, (Math.log10(size) - first) / wide));
  byId("phases").replaceChildren(...(wide > 0 ? result.phases : []).map((phase) => {
    const text = `${phase.name}: s = ${digits(phase.start, 2)} to ${digits(phase.stop, 2)}`;
    return element("span", { class: `phase ${phase.name}`, title: text,
      style: `left: ${part(phase.start)}%; width: ${part(phase.stop) - part(phase.start)}%` },
    element("b", {}, phase.name), element("span", { class: "unseen" }, ` ${text}`));
  }));
}

/** The size to begin with: where each edge can be told from others or, if that is less, where the top token is right. */
function firstSize(result) {
  const held = result.sizes.filter((row) => row.edges > 0);
  const right = held.find((row, i) => held.slice(i).every((r) => r.top1));
  const readable = held.filter((row) => row.edges <= READABLE).at(-1) ?? held[0] ?? result.sizes[0];
  return right !== undefined && right.edges < readable.edges ? right.size : readable.size;
}

/** Buttons to switch between results, one shown at a time; `change(number)` is called. */
function makeSwitch(change) {
  const box = byId("curves");
  box.append(...names.map((name, number) => {
    const input = element("input", { type: "radio", name: "curve", value: String(number) });
    input.addEventListener("change", () => change(number));
    return element("label", {}, input, ` ${name}`);
  }));
  box.hidden = false;
  return (number) => { box.querySelectorAll("input")[number].checked = true; };
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

/** Within the page of a trace, make the frame as high as what it holds, and keep the slider in sight as that page scrolls. */
function fitFrame() {
  if (home === window) return;
  document.documentElement.dataset.framed = "true";
  const frame = window.frameElement, header = document.querySelector("header");
  const fit = () => { frame.style.height = `${document.body.offsetHeight + frame.offsetHeight - frame.clientHeight}px`; };
  const follow = () => { header.style.top = `${Math.max(0, -frame.getBoundingClientRect().top)}px`; };
  new ResizeObserver(fit).observe(document.body);
  home.addEventListener("scroll", follow, { passive: true });
}

async function start() {
  fitFrame();
  const panels = [], unpacked = [], read = [];
  const shared = makeChoice();
  let active = 0, typing = false;
  const switched = names !== null;
  const shown = () => (switched ? [panels[active]] : panels);
  const slider = makeSlider((log) => {
    const text = shown().map((panel) => panel.show(log, typing)).join("; ");
    keepFragment(fragment);
    return text;
  });
  const choices = results.map(() => (switched ? shared : makeChoice()));
  const fragment = () => {
    const made = new URLSearchParams({ s: digits(10 ** slider.log(), 10) });
    if (switched && active > 0) made.set("curve", String(active));
    (switched ? [shared] : choices).forEach((choice, number) => writeChoice(made, number || "", choice, results[number]));
    return made;
  };
  /** Draw anew what the choice changed; `whole` is false while the name of a pin is typed. */
  const chosen = (whole = true) => {
    typing = !whole;
    slider.pick(slider.log());
    typing = false;
  };
  for (const [number, result] of results.entries()) {
    // A trace that is measured in another way is packed once.
    unpacked.push(typeof result.order === "number" ? unpacked[result.order] : await unpackEdges(result));
    // One lens may stand for all of one prompt.
    read.push(number > 0 && lenses.length === 1 ? read[0] : await unpackLens(lenses[number], result));
    panels.push(makePanel(result, unpacked[number], read[number], number, choices[number], slider.pick, chosen));
  }
  const lay = () => shown().forEach((panel) => panel.lay());
  const change = (number) => {
    const log = slider.log();
    active = number;
    panels.forEach((panel, i) => { panel.panel.hidden = switched && i !== number; });
    slider.over(shown().map((panel) => panel.result));
    lay();
    slider.pick(log);
  };
  const check = switched ? makeSwitch(change) : () => {};
  if (panels.length > 1 && !switched) byId("panels").classList.add("several");
  /** Show what the fragment of the address says, or what the page begins with. */
  const open = () => {
    const given = readFragment();
    const asked = Number(given.get("curve") ?? 0);
    active = switched && Number.isInteger(asked) && asked >= 0 && asked < panels.length ? asked : 0;
    (switched ? [shared] : choices).forEach((choice, number) => readChoice(given, number || "", choice, results[number]));
    check(active);
    change(active);
    const size = Number(given.get("s"));
    slider.pick(Math.log10(size > 0 ? size : firstSize(results[active])));
  };
  open();
  makeTheme(lay);
  home.addEventListener("hashchange", open);
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    lay();
  });
  window.explorer = { panels, fragment, pick: (size) => slider.pick(Math.log10(size)) };
  document.documentElement.dataset.ready = "true";
}

start().catch((error) => {
  byId("notice").textContent = `The results could not be shown: ${error.message}. A browser of 2023 or later is needed.`;
  byId("notice").hidden = false;
  throw error;
});
