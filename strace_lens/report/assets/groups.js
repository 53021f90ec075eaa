// Pinned nodes that share a name are a group. Between groups stand the edges on the paths from one to the
// other, counted and led by the most important of them.

const MOST_GROUPS = 12; // of which every two are compared
const GROUP_HUES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9"];

/** The pinned nodes of each name, in the order in which the names were given first. */
function groupsOf(pins) {
  const groups = new Map();
  for (const pin of pins) {
    const name = pin.name.trim();
    groups.set(name, [...(groups.get(name) ?? []), pin]);
  }
  return groups;
}

/** Whether a pin is the first of its group, beside which the name is written. */
const isFirst = (pins, pin) => groupsOf(pins).get(pin.name.trim())[0] === pin;

/** The colour of a pin: that of its group, or the ink where it has no company. */
function pinColour(pins, pin, ink) {
  const groups = groupsOf(pins), name = pin.name.trim();
  const several = [...groups.keys()].filter((key) => groups.get(key).length > 1);
  const place = several.indexOf(name);
  return place < 0 ? ink : GROUP_HUES[place % GROUP_HUES.length];
}

/** For each of two different groups, the edges in the view on paths from the first to the second, if there are any. */
function groupLinks(edges, view, pins, result) {
  const groups = [...groupsOf(pins)].slice(0, MOST_GROUPS);
  const above = groups.map(([, nodes]) => reach(edges, view.pass, nodes, result, true));
  const below = groups.map(([, nodes]) => reach(edges, view.pass, nodes, result, false));
  const links = [];
  for (const [i, [from]] of groups.entries()) {
    for (const [j, [to]] of groups.entries()) {
      const ranks = i === j ? [] : Array.from(view.pass.keys()).filter((rank) => above[i][rank] && below[j][rank]);
      if (ranks.length) links.push({ from, to, ranks });
    }
  }
  return links;
}

/** The most important of some edges that leave the stream, as the grid names its cell; null where all stay in it. */
function heaviest(edges, shape, ranks) {
  const leaving = ranks.filter((rank) => edges.kind[rank] !== 0);
  if (leaving.length === 0) return null;
  const worth = (rank) => (edges.importance === null ? -rank : edges.importance[rank]);
  const best = leaving.reduce((a, b) => (worth(b) > worth(a) ? b : a));
  return `L${edges.layer[best]} ${columnName(shape, cellOf(edges, shape, best) % columnsOf(shape))}`;
}

/** The table of links between groups; null where there are fewer than two groups. */
function linksTable(edges, view, pins, result) {
  const groups = groupsOf(pins);
  if (groups.size < 2) return null;
  const links = groupLinks(edges, view, pins, result);
  if (links.length === 0) return element("p", { class: "hint" }, "No path in the trace leads from one group of pins to another.");
  const of = (ranks, kind) => whole(ranks.filter((rank) => edges.kind[rank] === kind).length);
  const kinds = result.shape.mlp ? [1, 2, 0] : [1, 0];
  const rows = links.map(({ from, to, ranks }) => tableRow([from, to, ...kinds.map((kind) => of(ranks, kind)),
    heaviest(edges, result.shape, ranks) ?? "–"]));
  const left = groups.size > MOST_GROUPS ? `; the first ${MOST_GROUPS} groups are compared` : "";
  return element("table", {}, element("caption", {}, `Edges of the trace on paths between groups of pins${left}`),
    tableHead(["from", "to", ...kinds.map((kind) => KIND_NAMES[KINDS[kind]]), "most important"]),
    element("tbody", {}, ...rows));
}
