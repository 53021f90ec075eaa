// The trace on a canvas, layer by token: residual edges go straight up, MLP edges bow to the right,
// attention edges run from key to query (to the left of their node where both are one token).

const RIGHT = 12, TOP = 16;
const FONT = "11px system-ui, \"DejaVu Sans\", sans-serif";
const AT_A_TIME = 15_000; // edges that one frame draws, so that the page stays alive

/** Pixels that the widest of some labels takes. */
function widest(labels) {
  const context = document.createElement("canvas").getContext("2d");
  context.font = FONT;
  return Math.max(...labels.map((label) => context.measureText(label).width));
}

/** Where nodes lie, in pixels, on a drawing of the given width. */
function geometry(result, width) {
  const { tokens } = result.shape;
  const levels = result.levels.length;
  const left = 14 + widest(result.levels);
  const dx = Math.max(11, Math.min(90, (width - left - RIGHT) / tokens));
  const dy = Math.max(7, Math.min(52, 560 / levels));
  const foot = dx > 70 ? 30 : 20 + widest(result.tokens.map((t) => visible(t, 14)));
  return {
    left,
    dx,
    dy,
    tokens,
    levels,
    width: left + dx * tokens + RIGHT,
    height: TOP + dy * levels + foot,
    slanted: dx <= 70,
    x: (token) => left + (token + 0.5) * dx,
    y: (level) => TOP + (levels - 1 - level + 0.5) * dy,
  };
}

/** Source, control point and target of an edge, in pixels. */
function path(at, edges, heads, rank) {
  const kind = edges.kind[rank], source = edges.source[rank], target = edges.target[rank];
  const level = edges.level[rank];
  let along = 0.5, aside = 0;
  if (kind === 1) {
    // Parallel attention edges keep apart by where they bend: each head has a place of its own.
    const place = (edges.head[rank] + 0.5) / heads;
    along = 0.3 + 0.4 * place;
    if (source === target) aside = -0.2 - 0.45 * place;
  } else if (kind === 2) {
    aside = 0.4;
  }
  const x = source + along * (target - source) + aside;
  return [at.x(source), at.y(level), at.x(x), at.y(level + along), at.x(target), at.y(level + 1)];
}

/** The colours of the page's theme, read anew each time it changes. */
function themeColours() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(name).trim();
  return {
    kinds: KINDS.map((kind) => read(`--${kind}`)),
    ink: read("--ink"),
    faint: read("--faint"),
  };
}

/** Make a canvas as large as the drawing, sharp on dense screens, and return its context. */
function sized(canvas, at) {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(at.width * ratio);
  canvas.height = Math.round(at.height * ratio);
  canvas.style.width = `${at.width}px`;
  canvas.style.height = `${at.height}px`;
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  return context;
}

/** Every node as a faint dot, the output as a larger one, tokens below and hook points beside. */
function drawGround(context, result, at, colours) {
  context.clearRect(0, 0, at.width, at.height);
  context.fillStyle = colours.faint;
  for (let level = 0; level < at.levels; level++) {
    for (let token = 0; token < at.tokens; token++) {
      context.fillRect(at.x(token) - 1, at.y(level) - 1, 2, 2);
    }
  }
  context.fillStyle = colours.ink;
  context.beginPath();
  context.arc(at.x(at.tokens - 1), at.y(at.levels - 1), 4.5, 0, 2 * Math.PI);
  context.fill();
  context.font = FONT;
  context.textBaseline = "middle";
  context.textAlign = "right";
  const every = Math.ceil(14 / at.dy);
  for (let level = at.levels - 1; level >= 0; level -= every) {
    context.fillText(result.levels[level], at.left - 8, at.y(level));
  }
  for (let token = 0; token < at.tokens; token++) {
    context.save();
    context.translate(at.x(token), at.y(-0.5) + 8);
    if (at.slanted) context.rotate(-Math.PI / 2);
    context.textAlign = at.slanted ? "right" : "center";
    context.textBaseline = at.slanted ? "middle" : "top";
    context.fillText(visible(result.tokens[token], 14), 0, 0);
    context.restore();
  }
}

/** Draw the first `count` edges, some each frame; returns a function that stops it. */
function drawEdges(context, at, edges, heads, count, colours) {
  const opacity = Math.max(0.05, Math.min(0.9, 0.9 * (400 / Math.max(1, count)) ** 0.5));
  const order = [1, 2, 0]; // attention lies below, being most: the stream stays in sight
  let pass = 0, next = 0, frame = 0;
  const some = () => {
    const kind = order[pass], stop = Math.min(count, next + AT_A_TIME);
    context.globalAlpha = kind === 1 ? opacity : Math.max(opacity, 0.5);
    context.strokeStyle = colours.kinds[kind];
    while (next < stop) {
      // The first ranks are drawn thick; edges of one thickness share one stroke.
      const band = Math.min(stop, next < 100 ? 100 : next < 1000 ? 1000 : next + 1000);
      context.lineWidth = next < 100 ? 2.2 : next < 1000 ? 1.4 : 0.8;
      context.beginPath();
      for (let rank = next; rank < band; rank++) {
        if (edges.kind[rank] !== kind) continue;
        const [x0, y0, x1, y1, x2, y2] = path(at, edges, heads, rank);
        context.moveTo(x0, y0);
        context.quadraticCurveTo(x1, y1, x2, y2);
      }
      context.stroke();
      next = band;
    }
    context.globalAlpha = 1;
    if (next >= count) [pass, next] = [pass + 1, 0];
    frame = pass < order.length && count > 0 ? requestAnimationFrame(some) : 0;
  };
  some();
  return () => cancelAnimationFrame(frame);
}

/** Stroke some edges boldly and ring a node: what is pointed at or chosen. */
function drawMarked(context, at, edges, heads, ranks, node, colours) {
  context.clearRect(0, 0, at.width, at.height);
  context.lineWidth = 2.5;
  for (const rank of ranks) {
    const [x0, y0, x1, y1, x2, y2] = path(at, edges, heads, rank);
    context.strokeStyle = colours.kinds[edges.kind[rank]];
    context.beginPath();
    context.moveTo(x0, y0);
    context.quadraticCurveTo(x1, y1, x2, y2);
    context.stroke();
  }
  if (node === null) return;
  context.strokeStyle = colours.ink;
  context.lineWidth = 2;
  context.beginPath();
  context.arc(at.x(node.token), at.y(node.level), 6.5, 0, 2 * Math.PI);
  context.stroke();
}

/** Squared distance from a point to an edge, whose curve is taken as four straight pieces. */
function distanceToEdge(at, edges, heads, rank, x, y) {
  const [x0, y0, x1, y1, x2, y2] = path(at, edges, heads, rank);
  let least = Infinity, ax = x0, ay = y0;
  for (let piece = 1; piece <= 4; piece++) {
    const t = piece / 4, u = 1 - t;
    const bx = u * u * x0 + 2 * u * t * x1 + t * t * x2;
    const by = u * u * y0 + 2 * u * t * y1 + t * t * y2;
    const long = (bx - ax) ** 2 + (by - ay) ** 2;
    const part = long === 0 ? 0 : ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / long;
    const near = Math.max(0, Math.min(1, part));
    least = Math.min(least, (ax + near * (bx - ax) - x) ** 2 + (ay + near * (by - ay) - y) ** 2);
    [ax, ay] = [bx, by];
  }
  return least;
}
