// What of a trace is drawn: the edges that the filters leave, one by one or, where they are too
// many to be told apart, bundled by layer and token.

const APART = 600; // edges that can be told apart
const MOST_BUNDLES = 1500; // the heaviest ones, so that the drawing does not fill up
const CLASSES = 8; // of line width

/** What a reader chose: shared by curves that are switched, else one for each panel. */
const makeChoice = () => ({
  node: null, // { token, level }
  through: false, // only paths through the node
  least: 0, // importance
  cells: new Set(), // of the grid: layer * columns + column
  draw: "auto", // or "edges" or "bundles"
  width: "importance", // or "number"
  pins: [], // { token, level, name }
});

/** Columns of the grid: the heads, then MLP (where there is one) and the residual stream. */
const columnsOf = (shape) => shape.heads + (shape.mlp ? 2 : 1);
const columnName = (shape, column) =>
  column < shape.heads ? `H${column}` : column === shape.heads && shape.mlp ? "MLP" : "residual";

/** The cell of the grid that an edge belongs to. */
function cellOf(edges, shape, rank) {
  const kind = edges.kind[rank];
  const column = kind === 1 ? edges.head[rank] : kind === 2 ? shape.heads : columnsOf(shape) - 1;
  return edges.layer[rank] * columnsOf(shape) + column;
}

/** For each of the first `count` edges, whether it is important enough and on a path through the node. */
function passing(edges, count, choice, result) {
  const pass = new Uint8Array(count).fill(1);
  if (choice.least > 0 && edges.importance !== null) {
    for (let rank = 0; rank < count; rank++) pass[rank] = edges.importance[rank] >= choice.least ? 1 : 0;
  }
  if (choice.through && choice.node !== null) keepPaths(edges, pass, choice.node, result);
  return pass;
}

/** Unmark the edges that lie on no path through a node made of marked edges. */
function keepPaths(edges, pass, node, result) {
  const above = reach(edges, pass, [node], result, true), below = reach(edges, pass, [node], result, false);
  pass.forEach((_, rank) => { pass[rank] = above[rank] | below[rank]; });
}

/** The marked edges on paths that start from some nodes, up to the output or down to the tokens. */
function reach(edges, pass, nodes, result, up) {
  const { tokens } = result.shape, top = result.levels.length - 1;
  const [near, far] = up ? [edges.source, edges.target] : [edges.target, edges.source];
  const kept = new Uint8Array(pass.length);
  let here = new Uint8Array(tokens);
  for (let step = 0; step < top; step++) {
    const level = up ? step : top - step, next = new Uint8Array(tokens);
    for (const node of nodes) if (node.level === level) here[node.token] = 1;
    for (const rank of edges.byLevel[up ? level : level - 1] ?? []) {
      if (rank >= pass.length) break;
      if (pass[rank] && here[near[rank]]) kept[rank] = next[far[rank]] = 1;
    }
    here = next;
  }
  return kept;
}

/** Edges of the same kind, level, source and target as one: how many, their importance, the first. */
function bundle(edges, ranks, shape, by) {
  const { tokens, heads } = shape, places = new Map();
  const made = { kind: [], layer: [], level: [], source: [], target: [], head: [], number: [], importance: [], first: [] };
  for (const rank of ranks) {
    const key = ((edges.level[rank] * 3 + edges.kind[rank]) * tokens + edges.source[rank]) * tokens + edges.target[rank];
    let place = places.get(key);
    if (place === undefined) {
      place = places.size;
      places.set(key, place);
      for (const name of ["kind", "layer", "level", "source", "target"]) made[name].push(edges[name][rank]);
      made.head.push((heads - 1) / 2); // bends as the middle head does
      made.number.push(0);
      made.importance.push(0);
      made.first.push(rank);
    }
    made.number[place] += 1;
    if (edges.importance !== null) made.importance[place] += edges.importance[rank];
  }
  const values = by === "importance" && edges.importance !== null ? made.importance : made.number;
  // Importances of two kinds are not on one scale, and a residual edge has no parallel one.
  const most = [0, 0, 0];
  values.forEach((value, i) => { most[made.kind[i]] = Math.max(most[made.kind[i]], value); });
  made.weight = values.map((value, i) => (most[made.kind[i]] > 0 ? value / most[made.kind[i]] : 0));
  return made;
}

/** The edges or bundles to draw, the first or heaviest first, and the strokes that draw them. */
function makeView(edges, count, choice, result) {
  const { shape } = result;
  const pass = passing(edges, count, choice, result);
  const shown = [];
  for (let rank = 0; rank < count; rank++) {
    if (pass[rank] && (choice.cells.size === 0 || choice.cells.has(cellOf(edges, shape, rank)))) shown.push(rank);
  }
  const bundled = choice.draw === "bundles" || (choice.draw === "auto" && shown.length > APART);
  let items = edges, drawn = shown, bundles = 0, held = shown.length;
  if (bundled) {
    items = bundle(edges, shown, shape, choice.width);
    bundles = items.first.length;
    drawn = items.first.map((_, i) => i)
      .sort((a, b) => items.weight[b] - items.weight[a] || items.first[a] - items.first[b])
      .slice(0, MOST_BUNDLES);
    held = drawn.reduce((sum, i) => sum + items.number[i], 0);
  }
  const byLevel = Array.from({ length: result.levels.length }, () => []);
  for (const i of drawn) byLevel[items.level[i]].push(i);
  const strokes = bundled ? bundleStrokes(items, drawn) : edgeStrokes(edges, drawn);
  return { pass, shown, bundled, items, drawn, bundles, held, byLevel, strokes };
}

/** One by one: the first ranks thick; attention lies below, being most, so that the stream stays in sight. */
function edgeStrokes(edges, drawn) {
  const opacity = Math.max(0.05, Math.min(0.9, 0.9 * (400 / Math.max(1, drawn.length)) ** 0.5));
  const strokes = [];
  for (const kind of [1, 2, 0]) {
    for (let start = 0; start < drawn.length;) {
      const stop = start < 100 ? 100 : start < 1000 ? 1000 : start + 1000;
      const some = drawn.slice(start, stop).filter((rank) => edges.kind[rank] === kind);
      const width = start < 100 ? 2.2 : start < 1000 ? 1.4 : 0.8;
      if (some.length) strokes.push({ kind, width, opacity: kind === 1 ? opacity : Math.max(opacity, 0.5), some });
      start = stop;
    }
  }
  return strokes;
}

/** Bundles by class of weight, the heaviest last and on top; one stroke does not darken itself. */
function bundleStrokes(items, drawn) {
  const classes = new Map();
  for (const i of drawn) {
    const place = Math.min(CLASSES - 1, Math.floor(items.weight[i] * CLASSES));
    const key = place * 3 + [1, 2, 0].indexOf(items.kind[i]);
    if (!classes.has(key)) classes.set(key, []);
    classes.get(key).push(i);
  }
  return [...classes.keys()].sort((a, b) => a - b).map((key) => {
    const heavy = (Math.floor(key / 3) + 1) / CLASSES, kind = [1, 2, 0][key % 3];
    const [widest, darkest] = kind === 1 ? [3, 0.6] : [1.8, 0.8]; // attention crosses itself
    return { kind, width: 0.5 + (widest - 0.5) * heavy, opacity: 0.1 + (darkest - 0.1) * heavy, some: classes.get(key) };
  });
}
