// The drawing as a thing to point at: hover names an edge or a bundle, a click or the arrow keys choose
// a node, and its in-edges are listed below.

const NEAR = 6; // pixels
const LISTED = 60;
const MARKED = 400; // in-edges of a node that are drawn boldly

/** How an edge is named, line by line, as TransformerLens names its hook points. */
function edgeLines(result, edges, rank) {
  const kind = KINDS[edges.kind[rank]], layer = edges.layer[rank], level = edges.level[rank];
  const source = edges.source[rank], target = edges.target[rank];
  const hook = {
    residual: "residual stream",
    attention: `blocks.${layer}.attn.hook_pattern, head ${edges.head[rank]}`,
    mlp: `blocks.${layer}.hook_mlp_out`,
  }[kind];
  return [
    `${KIND_NAMES[kind]}: ${hook}`,
    `from ${quoted(result.tokens[source], source)} at ${result.levels[level]}`,
    `to ${quoted(result.tokens[target], target)} at ${result.levels[level + 1]}`,
    `importance ${importanceText(edges, rank)}, rank ${whole(rank)} of ${whole(result.edges)}`,
  ];
}

/** How a bundle is named, line by line. */
function bundleLines(result, edges, view, i) {
  const { items } = view, kind = KINDS[items.kind[i]], layer = items.layer[i], level = items.level[i];
  const { source, target } = { source: items.source[i], target: items.target[i] };
  if (items.number[i] === 1) return edgeLines(result, edges, items.first[i]);
  const heads = edges.byLevel[level].filter((rank) => rank < view.pass.length && view.pass[rank] &&
    edges.kind[rank] === items.kind[i] && edges.source[rank] === source && edges.target[rank] === target);
  const listed = Array.from(heads.slice(0, 8), (rank) => edges.head[rank]).join(", ");
  return [
    `${whole(items.number[i])} ${KIND_NAMES[kind]} edges: blocks.${layer}.attn.hook_pattern`,
    `heads ${listed}${heads.length > 8 ? " and others" : ""}, by rank`,
    `from ${quoted(result.tokens[source], source)} at ${result.levels[level]}`,
    `to ${quoted(result.tokens[target], target)} at ${result.levels[level + 1]}`,
    `importance ${edges.importance === null ? "not kept" : `${digits(items.importance[i], 2)} together`}, ranks from ${whole(items.first[i])}`,
  ];
}

// Importances are packed with eight bits of precision: two digits.
const importanceText = (edges, rank) =>
  edges.importance === null ? "not kept" : digits(edges.importance[rank], 2);

/** Ranks of the in-edges of a node among all packed edges, rising. */
function inEdges(edges, node) {
  if (node.level === 0) return [];
  return Array.from(edges.byLevel[node.level - 1]).filter((r) => edges.target[r] === node.token);
}

/** What the drawing shows, in words. */
function drawnText(view, count) {
  const left = view.shown.length === count ? "" : ` that the filters leave of ${whole(count)}`;
  if (!view.bundled) return `${edgeText(view.shown.length)}${left}, drawn one by one.`;
  const all = view.bundles === view.drawn.length ? `${whole(view.bundles)} bundles`
    : `The ${whole(view.drawn.length)} heaviest of ${whole(view.bundles)} bundles`;
  const held = view.held === view.shown.length ? "" : ` (${percent(view.held / view.shown.length)} of them drawn)`;
  return `${all} of ${edgeText(view.shown.length)}${left}${held}: one for each kind, layer and pair of tokens.`;
}

/** A drawing inside `parent`, above its controls; `show(count)` draws what the choice leaves of the first so many edges. */
function makeGraph(parent, tools, result, edges, lens, choice, tip, say, changed) {
  const heads = result.shape.heads;
  const ground = element("canvas", { "aria-hidden": "true" });
  const marks = element("canvas", {
    class: "marks",
    tabindex: "0",
    role: "application",
    "aria-label": `The trace, layer by token: arrow keys move from node to node of ${result.tokens.length} ` +
      `tokens and ${result.levels.length} hook points; the in-edges of the chosen node are listed below`,
  });
  const drawn = element("p", { class: "hint drawn" });
  const scroll = element("div", { class: "drawing" }, element("div", { class: "layers" }, ground, marks));
  const list = element("div", { class: "in-edges", tabindex: "0", role: "region", "aria-label": "In-edges" });
  parent.append(drawn, scroll, tools);
  const readout = makeReadout(parent, result, lens);
  parent.append(list);
  const state = { at: null, count: 0, view: null, colours: themeColours(), stop: () => {} };
  let under, over;

  const lay = () => {
    state.colours = themeColours();
    state.at = geometry(result, scroll.clientWidth);
    under = sized(ground, state.at);
    over = sized(marks, state.at);
    if (state.view !== null) draw();
  };
  const draw = () => {
    state.stop();
    drawGround(under, result, state.at, state.colours);
    state.stop = drawStrokes(under, state.at, state.view.items, heads, state.view.strokes, state.colours);
    mark([]);
  };
  const mark = (some) => {
    const chosen = choice.node === null ? []
      : inEdges(edges, choice.node).filter((r) => r < state.count && state.view.pass[r]);
    const marked = [{ items: edges, some: chosen.slice(0, MARKED) }, { items: state.view.items, some }];
    drawMarked(over, state.at, marked, heads, choice.node, choice.pins, state.colours);
  };

  /** The edge or bundle nearest to a point, or -1; the first of two that are as near. */
  const edgeAt = (x, y) => {
    const level = Math.floor(state.at.levels - 0.5 - (y - TOP) / state.at.dy);
    let nearest = -1, least = NEAR ** 2;
    for (const i of state.view.byLevel[level] ?? []) {
      const far = distanceToEdge(state.at, state.view.items, heads, i, x, y);
      if (far < least) [nearest, least] = [i, far];
    }
    return nearest;
  };
  const nodeAt = (x, y) => {
    const token = Math.round((x - state.at.left) / state.at.dx - 0.5);
    const level = Math.round(state.at.levels - 0.5 - (y - TOP) / state.at.dy);
    if (token < 0 || token >= state.at.tokens || level < 0 || level >= state.at.levels) return null;
    const near = Math.hypot(state.at.x(token) - x, state.at.y(level) - y) <= NEAR;
    return near ? { token, level } : null;
  };
  const sublayers = (result.levels.length - 1) / result.shape.layers;
  const layerAt = (y) => {
    const layer = Math.floor((state.at.levels - 0.5 - (y - TOP) / state.at.dy) / sublayers);
    return layer >= 0 && layer < result.shape.layers ? layer : null;
  };
  const layerLevels = (layer) =>
    result.levels.slice(layer * sublayers, (layer + 1) * sublayers + 1).reverse();
  const nodeText = ({ token, level }) =>
    `${result.levels[level]} at ${quoted(result.tokens[token], token)}`;

  const choose = (node) => {
    choice.node = node;
    changed();
    if (node === null) return;
    const best = read ? `; read as ${quoted(lens.node(node)[0][0])}` : "";
    say(`${nodeText(node)}: ${list.dataset.summary}${best}`);
  };
  const read = lens !== null && lens.reason === null;
  /** What an edge into the last token adds directly to the target's logit. */
  const direct = (rank) => {
    const layer = edges.layer[rank];
    return signed([() => lens.logit(edges.level[rank]), () => lens.headAt(layer, edges.head[rank], edges.source[rank]),
      () => lens.mlp(layer)][edges.kind[rank]]());
  };
  const listInEdges = () => {
    list.replaceChildren();
    readout(choice.node);
    if (choice.node === null) {
      list.append(element("p", { class: "hint" }, "Click a node, or move to one with the arrow keys, to list its in-edges."));
      return;
    }
    const all = inEdges(edges, choice.node);
    const last = read && choice.node.token === result.shape.tokens - 1;
    const kept = all.filter((r) => r < state.count).length;
    list.dataset.summary = `${whole(kept)} of ${edgeText(all.length)} into it in the trace`;
    const byImportance = edges.importance === null
      ? all
      : all.sort((a, b) => edges.importance[b] - edges.importance[a] || a - b);
    const rows = byImportance.slice(0, LISTED).map((r) => {
      const row = tableRow([
        KIND_NAMES[KINDS[edges.kind[r]]],
        edges.head[r] < 0 ? "–" : String(edges.head[r]),
        quoted(result.tokens[edges.source[r]], edges.source[r]),
        importanceText(edges, r),
        whole(r),
        r < state.count ? "yes" : "no",
        ...(last ? [direct(r)] : []),
      ], true);
      row.className = r < state.count ? KINDS[edges.kind[r]] : "out";
      return row;
    });
    const more = all.length > LISTED ? `; the first ${LISTED} are listed` : "";
    list.append(element("table", {},
      element("caption", {}, `${nodeText(choice.node)}: ${list.dataset.summary}${more}`),
      tableHead(["kind", "head", "from token", "importance", "rank", "in the trace",
        ...(last ? [`adds to ${lens.target}`] : [])]),
      element("tbody", {}, ...rows)));
  };

  const pointer = (event) => {
    const box = marks.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  marks.addEventListener("pointermove", (event) => {
    const [x, y] = pointer(event);
    const node = nodeAt(x, y);
    const i = node === null ? edgeAt(x, y) : -1;
    const layer = x < state.at.left - 4 ? layerAt(y) : null;
    mark(i < 0 ? [] : [i]);
    if (node !== null) tip.show(event, [nodeText(node), "Click to list its in-edges"]);
    else if (i >= 0 && state.view.bundled) tip.show(event, bundleLines(result, edges, state.view, i));
    else if (i >= 0) tip.show(event, edgeLines(result, edges, i));
    else if (layer !== null) tip.show(event, [layerLabel(layer), ...layerLevels(layer)]);
    else tip.hide();
  });
  marks.addEventListener("pointerleave", () => {
    tip.hide();
    mark([]);
  });
  marks.addEventListener("click", (event) => choose(nodeAt(...pointer(event))));
  marks.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    if (event.key === "Escape") return choose(null);
    if (!(event.key in moves)) return;
    event.preventDefault();
    const { tokens, levels } = state.at;
    if (choice.node === null) return choose({ token: tokens - 1, level: levels - 1 });
    const [across, up] = moves[event.key];
    const bound = (value, limit) => Math.max(0, Math.min(limit - 1, value));
    choose({ token: bound(choice.node.token + across, tokens), level: bound(choice.node.level + up, levels) });
  });

  return {
    lay,
    /** Draw what the choice leaves of the first `count` edges; returns the view. */
    show(count) {
      state.count = Math.min(count, edges.count);
      state.view = makeView(edges, state.count, choice, result);
      drawn.textContent = drawnText(state.view, state.count);
      if (state.at !== null) draw();
      listInEdges();
      return state.view;
    },
    nodeText,
    /** The drawing as the text of an SVG file. */
    svgText: () => new XMLSerializer().serializeToString(
      drawingSvg(result, state.at, state.view, choice.pins, state.colours)),
    shown: () => state.view.shown,
    view: () => state.view,
    /** Where the middle of an edge, or of a bundle, lies on the screen: for tests and scripts. */
    locate(i) {
      const [x0, y0, x1, y1, x2, y2] = path(state.at, state.view.items, heads, i);
      const box = marks.getBoundingClientRect();
      return [box.left + (x0 + 2 * x1 + x2) / 4, box.top + (y0 + 2 * y1 + y2) / 4];
    },
    /** Where a node lies on the screen. */
    locateNode(token, level) {
      const box = marks.getBoundingClientRect();
      return [box.left + state.at.x(token), box.top + state.at.y(level)];
    },
  };
}
