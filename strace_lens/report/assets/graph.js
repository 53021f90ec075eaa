// The drawing as a thing to point at: hover names an edge, a click or the arrow keys choose a node,
// and its in-edges are listed below.

const NEAR = 6; // pixels
const LISTED = 60;

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

// Importances are packed with eight bits of precision: two digits.
const importanceText = (edges, rank) =>
  edges.importance === null ? "not kept" : digits(edges.importance[rank], 2);

/** Ranks of the in-edges of a node among all packed edges, rising. */
function inEdges(edges, node) {
  if (node.level === 0) return [];
  return Array.from(edges.byLevel[node.level - 1]).filter((r) => edges.target[r] === node.token);
}

/** A drawing inside `parent`; `show(count)` draws the first so many edges. */
function makeGraph(parent, result, edges, tip, say) {
  const heads = result.shape.heads;
  const ground = element("canvas", { "aria-hidden": "true" });
  const marks = element("canvas", {
    class: "marks",
    tabindex: "0",
    role: "application",
    "aria-label": `The trace, layer by token: arrow keys move from node to node of ${result.tokens.length} ` +
      `tokens and ${result.levels.length} hook points; the in-edges of the chosen node are listed below`,
  });
  const scroll = element("div", { class: "drawing" }, element("div", { class: "layers" }, ground, marks));
  const list = element("div", { class: "in-edges", tabindex: "0", role: "region", "aria-label": "In-edges" });
  parent.append(scroll, list);
  const state = { at: null, count: 0, node: null, colours: themeColours(), stop: () => {} };
  let under, over;

  const lay = () => {
    state.colours = themeColours();
    state.at = geometry(result, scroll.clientWidth);
    under = sized(ground, state.at);
    over = sized(marks, state.at);
    draw();
  };
  const draw = () => {
    state.stop();
    drawGround(under, result, state.at, state.colours);
    state.stop = drawEdges(under, state.at, edges, heads, state.count, state.colours);
    mark([]);
  };
  const mark = (ranks) => {
    const chosen = state.node === null ? [] : inEdges(edges, state.node).filter((r) => r < state.count);
    drawMarked(over, state.at, edges, heads, [...chosen, ...ranks], state.node, state.colours);
  };

  /** The edge of the trace nearest to a point, or -1; the earlier rank of two that are as near. */
  const edgeAt = (x, y) => {
    const level = Math.floor(state.at.levels - 0.5 - (y - TOP) / state.at.dy);
    let nearest = -1, least = NEAR ** 2;
    for (const rank of edges.byLevel[level] ?? []) {
      if (rank >= state.count) break;
      const far = distanceToEdge(state.at, edges, heads, rank, x, y);
      if (far < least) [nearest, least] = [rank, far];
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
  const nodeText = ({ token, level }) =>
    `${result.levels[level]} at ${quoted(result.tokens[token], token)}`;

  const choose = (node) => {
    state.node = node;
    mark([]);
    listInEdges();
    if (node !== null) say(`${nodeText(node)}: ${list.dataset.summary}`);
  };
  const listInEdges = () => {
    list.replaceChildren();
    if (state.node === null) {
      list.append(element("p", { class: "hint" }, "Click a node, or move to one with the arrow keys, to list its in-edges."));
      return;
    }
    const all = inEdges(edges, state.node);
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
      ], true);
      row.className = r < state.count ? KINDS[edges.kind[r]] : "out";
      return row;
    });
    const more = all.length > LISTED ? `; the first ${LISTED} are listed` : "";
    list.append(element("table", {},
      element("caption", {}, `${nodeText(state.node)}: ${list.dataset.summary}${more}`),
      tableHead(["kind", "head", "from token", "importance", "rank", "in the trace"]),
      element("tbody", {}, ...rows)));
  };

  const pointer = (event) => {
    const box = marks.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  marks.addEventListener("pointermove", (event) => {
    const [x, y] = pointer(event);
    const node = nodeAt(x, y);
    const rank = node === null ? edgeAt(x, y) : -1;
    mark(rank < 0 ? [] : [rank]);
    if (node !== null) tip.show(event, [nodeText(node), "Click to list its in-edges"]);
    else if (rank >= 0) tip.show(event, edgeLines(result, edges, rank));
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
    if (state.node === null) return choose({ token: tokens - 1, level: levels - 1 });
    const [across, up] = moves[event.key];
    const bound = (value, limit) => Math.max(0, Math.min(limit - 1, value));
    choose({ token: bound(state.node.token + across, tokens), level: bound(state.node.level + up, levels) });
  });

  return {
    lay,
    show(count) {
      state.count = Math.min(count, edges.count);
      draw();
      listInEdges();
    },
    /** Where an edge's middle lies on the screen: for tests and scripts. */
    locate(rank) {
      const [x0, y0, x1, y1, x2, y2] = path(state.at, edges, heads, rank);
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
