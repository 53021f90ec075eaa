// What a reader chooses for a drawing: filters, how it is drawn, pinned nodes, files to save.

const STEPS = 200; // of the threshold, in equal ratios
const GROUPED = "Pins that are given the same name are a group.";

/** Save a text under a name. */
function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** A list to choose from, within its label. */
function chooser(label, options, pick) {
  const select = element("select", { "aria-label": label }, ...Object.entries(options).map(([value, text]) =>
    element("option", { value }, text)));
  select.addEventListener("change", () => pick(select.value));
  return { box: element("label", {}, `${label} `, select), select };
}

/** The controls of a drawing inside `parent`; `show()` brings them up to date with the choice. */
function makeControls(parent, result, edges, choice, graph, changed) {
  const draw = chooser("Draw", { auto: "automatically", edges: "every edge", bundles: "bundles" }, (value) => {
    choice.draw = value;
    changed();
  });
  const width = chooser("Width of bundles by", { importance: "importance", number: "number of edges" }, (value) => {
    choice.width = value;
    changed();
  });
  const through = element("input", { type: "checkbox" });
  through.addEventListener("change", () => {
    choice.through = through.checked;
    changed();
  });
  const scale = importanceScale(edges);
  const least = element("input", { type: "range", min: "0", max: String(STEPS), step: "1", value: "0" });
  const leastText = element("output", {});
  least.addEventListener("input", () => {
    choice.least = scale.value(Number(least.value));
    changed();
  });
  if (edges.importance === null) least.disabled = width.select.disabled = true;
  const button = (text, act) => {
    const made = element("button", { type: "button" }, text);
    made.addEventListener("click", act);
    return made;
  };
  const pin = button("Pin the node", () => {
    const { node } = choice;
    if (node === null || choice.pins.some((p) => p.token === node.token && p.level === node.level)) return;
    choice.pins.push({ ...node, name: `${levelLabel(result, node.level)} ${visible(result.tokens[node.token], 14)}` });
    changed();
    pins.querySelector("li:last-child input").select();
  });
  const clear = button("Clear filters", () => {
    Object.assign(choice, { least: 0, through: false });
    choice.cells.clear();
    changed();
  });
  const file = () => `trace-${edgeText(graph.shown().length).replace(/\W+/g, "-")}`;
  const saveSvg = button("Save SVG", () => download(`${file()}.svg`, "image/svg+xml", graph.svgText()));
  const saveJson = button("Save JSON", () =>
    download(`${file()}.json`, "application/json", JSON.stringify(chosenJson(result, edges, choice, graph), null, 1)));
  const pins = element("ul", { class: "pins", "aria-label": "Pinned nodes" });
  const links = element("div", { class: "links scrolled" });
  const names = element("datalist", { id: `groups-${parent.closest(".panel").getAttribute("aria-labelledby")}` });
  parent.append(element("div", { class: "choices" }, draw.box, width.box,
    element("label", {}, "Importance at least ", least, " ", leastText),
    element("label", {}, through, " Only paths through the chosen node"), clear, pin, saveSvg, saveJson), pins, names, links);

  const listPins = () => pins.replaceChildren(...choice.pins.map((each) => {
    const name = element("input", { type: "text", value: each.name, "aria-label": `Name of ${graph.nodeText(each)}`, size: "18",
      list: names.id });
    name.addEventListener("input", () => {
      each.name = name.value;
      changed(false);
    });
    const go = button(graph.nodeText(each), () => {
      choice.node = { token: each.token, level: each.level };
      changed();
    });
    const remove = button("Unpin", () => {
      choice.pins.splice(choice.pins.indexOf(each), 1);
      changed();
    });
    return element("li", {}, name, go, remove);
  }));
  return {
    /** Bring the controls up to date; the names of pins are left alone while one is typed. */
    show(whole = true) {
      draw.select.value = choice.draw;
      width.select.value = edges.importance === null ? "number" : choice.width;
      through.checked = choice.through;
      through.disabled = pin.disabled = choice.node === null;
      clear.disabled = choice.least === 0 && !choice.through && choice.cells.size === 0;
      least.value = String(scale.step(choice.least));
      leastText.textContent = edges.importance === null ? "not kept" : choice.least === 0 ? "any" : digits(choice.least, 2);
      if (whole) listPins();
      names.replaceChildren(...[...groupsOf(choice.pins).keys()].map((name) => element("option", { value: name })));
      const table = linksTable(edges, graph.view(), choice.pins, result);
      links.replaceChildren(...(choice.pins.length < 2 ? [] : [element("p", { class: "hint" }, GROUPED), table]).filter(Boolean));
    },
  };
}

/** A scale of thresholds in equal ratios between the least positive importance and the greatest. */
function importanceScale(edges) {
  let low = Infinity, high = 0;
  for (const value of edges.importance ?? []) {
    if (value > 0) [low, high] = [Math.min(low, value), Math.max(high, value)];
  }
  const ratio = high > low ? high / low : 1;
  return {
    value: (step) => (step === 0 || high === 0 ? 0 : low * ratio ** (step / STEPS)),
    step: (value) => (value <= 0 || ratio === 1 ? 0 : Math.max(1, Math.round((STEPS * Math.log(value / low)) / Math.log(ratio)))),
  };
}

/** A node's level in short: the layer whose output or middle it is. */
function levelLabel(result, level) {
  const found = /blocks\.(\d+)\.hook_resid_(\w+)/.exec(result.levels[level]);
  return found === null ? result.levels[level] : `L${found[1]} ${found[2]}`;
}

/** Everything a reader chose and the edges that it leaves, as a value for JSON. */
function chosenJson(result, edges, choice, graph) {
  const node = ({ token, level }) => ({ hook: result.levels[level], position: token, token: result.tokens[token] });
  return {
    model: result.metadata.model ?? null,
    tokens: result.tokens,
    filters: {
      least_importance: choice.least,
      paths_through: choice.through && choice.node !== null ? node(choice.node) : null,
      cells: [...choice.cells].sort((a, b) => a - b).map((key) => {
        const columns = columnsOf(result.shape);
        return { layer: Math.floor(key / columns), column: columnName(result.shape, key % columns) };
      }),
    },
    pins: choice.pins.map((pin) => ({ name: pin.name, ...node(pin) })),
    links: groupLinks(edges, graph.view(), choice.pins, result),
    edges: Array.from(graph.shown(), (rank) => ({
      rank,
      kind: KINDS[edges.kind[rank]],
      layer: edges.layer[rank],
      head: edges.head[rank] < 0 ? null : edges.head[rank],
      from: node({ token: edges.source[rank], level: edges.level[rank] }),
      to: node({ token: edges.target[rank], level: edges.level[rank] + 1 }),
      importance: edges.importance === null ? null : edges.importance[rank],
    })),
  };
}
