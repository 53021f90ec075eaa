// The trace on a canvas, layer by token: residual edges go straight up, MLP edges bow to the right,
// attention edges run from key to query (to the left of their node where both are one token).

const RIGHT = 12, TOP = 16;
const FONT = "11px system-ui, \"DejaVu Sans\", sans-serif";
const AT_A_TIME = 15_000; // edges that one frame draws, so that the page stays alive
const PINNED = "600 11px system-ui, \"DejaVu Sans\", sans-serif";

/** Pixels that the widest of some labels takes. */
function widest(labels) {
  const context = document.createElement("canvas").getContext("2d");
  context.font = FONT;
  return Math.max(...labels.map((label) => context.measureText(label).width));
}

const layerLabel = (layer) => `L${layer}`;

/** Where nodes lie, in pixels, on a drawing of the given width. */
function geometry(result, width) {
  const { tokens } = result.shape;
  const levels = result.levels.length;
  const left = 18 + widest([layerLabel(result.shape.layers - 1)]);
  const dx = Math.max(11, Math.min(130, (width - left - RIGHT) / tokens));
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
    paper: read("--paper"),
    panel: read("--panel"),
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

/** The labels of a drawing: layers at the left, each in the middle of its nodes, and tokens below. */
function labelsOf(result, at) {
  const { layers } = result.shape, step = (at.levels - 1) / layers;
  const every = Math.ceil(14 / (at.dy * step));
  const labels = [];
  for (let layer = layers - 1; layer >= 0; layer -= every) {
    labels.push({ text: layerLabel(layer), x: at.left - 8, y: at.y((layer + 0.5) * step), align: "right", turn: 0 });
  }
  for (let token = 0; token < at.tokens; token++) {
    labels.push({ text: visible(result.tokens[token], 14), x: at.x(token), y: at.y(-0.5) + (at.slanted ? 8 : 14),
      align: at.slanted ? "right" : "center", turn: at.slanted ? -90 : 0 });
  }
  return labels;
}

/** Every node as a faint dot, the output as a larger one, with the labels. */
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
  for (const { text, x, y, align, turn } of labelsOf(result, at)) {
    context.save();
    context.translate(x, y);
    context.rotate((turn * Math.PI) / 180);
    context.textAlign = align;
    context.fillText(text, 0, 0);
    context.restore();
  }
}

/** Draw some strokes, as many edges a frame as keep the page alive; returns a function that stops it. */
function drawStrokes(context, at, items, heads, strokes, colours) {
  let next = 0, frame = 0;
  const some = () => {
    for (let edges = 0; next < strokes.length && edges < AT_A_TIME; next++) {
      const stroke = strokes[next];
      context.globalAlpha = stroke.opacity;
      context.strokeStyle = colours.kinds[stroke.kind];
      context.lineWidth = stroke.width;
      context.beginPath();
      for (const i of stroke.some) {
        const [x0, y0, x1, y1, x2, y2] = path(at, items, heads, i);
        context.moveTo(x0, y0);
        context.quadraticCurveTo(x1, y1, x2, y2);
      }
      context.stroke();
      edges += stroke.some.length;
    }
    context.globalAlpha = 1;
    frame = next < strokes.length ? requestAnimationFrame(some) : 0;
  };
  some();
  return () => cancelAnimationFrame(frame);
}

/** Stroke some edges boldly; ring a node, and name those that are pinned. */
function drawMarked(context, at, marked, heads, node, pins, colours) {
  context.clearRect(0, 0, at.width, at.height);
  context.lineWidth = 2.5;
  for (const { items, some } of marked) {
    for (const i of some) {
      const [x0, y0, x1, y1, x2, y2] = path(at, items, heads, i);
      context.strokeStyle = colours.kinds[items.kind[i]];
      context.beginPath();
      context.moveTo(x0, y0);
      context.quadraticCurveTo(x1, y1, x2, y2);
      context.stroke();
    }
  }
  const ring = ({ token, level }, radius, colour) => {
    context.strokeStyle = colour;
    context.lineWidth = 2;
    context.beginPath();
    context.arc(at.x(token), at.y(level), radius, 0, 2 * Math.PI);
    context.stroke();
  };
  context.font = PINNED;
  context.textBaseline = "middle";
  for (const pin of pins) {
    const colour = pinColour(pins, pin, colours.ink);
    ring(pin, 5, colour);
    if (!isFirst(pins, pin)) continue;
    const { x, y, align } = pinLabel(at, pin);
    context.textAlign = align;
    context.lineWidth = 4;
    context.strokeStyle = colours.paper;
    context.strokeText(pin.name, x, y);
    context.fillStyle = colour;
    context.fillText(pin.name, x, y);
  }
  if (node !== null) ring(node, 6.5, colours.ink);
}

/** Where the name of a pinned node stands: towards the middle of the drawing. */
function pinLabel(at, { token, level }) {
  const right = at.x(token) < at.width / 2;
  return { x: at.x(token) + (right ? 9 : -9), y: at.y(level), align: right ? "left" : "right" };
}

/** What is drawn as an SVG element that stands alone. */
function drawingSvg(result, at, view, pins, colours) {
  const { heads } = result.shape;
  const anchors = { left: "start", center: "middle", right: "end" };
  const short = (value) => Number(value.toFixed(2));
  const drawing = svg("svg", { xmlns: "http://www.w3.org/2000/svg", viewBox: `0 0 ${at.width} ${at.height}`,
    width: at.width, height: at.height, "font-family": "system-ui, sans-serif", "font-size": 11 },
  svg("rect", { width: "100%", height: "100%", fill: colours.paper }));
  for (const { kind, width, opacity, some } of view.strokes) {
    const d = some.map((i) => {
      const [x0, y0, x1, y1, x2, y2] = path(at, view.items, heads, i).map(short);
      return `M${x0} ${y0}Q${x1} ${y1} ${x2} ${y2}`;
    }).join("");
    drawing.append(svg("path", { d, fill: "none", stroke: colours.kinds[kind], "stroke-width": short(width),
      "stroke-opacity": short(opacity) }));
  }
  for (const { text, x, y, align, turn } of labelsOf(result, at)) {
    drawing.append(svg("text", { "text-anchor": anchors[align], "dominant-baseline": "middle", fill: colours.ink,
      transform: `translate(${short(x)} ${short(y)}) rotate(${turn})` }, text));
  }
  drawing.append(svg("circle", { cx: at.x(at.tokens - 1), cy: at.y(at.levels - 1), r: 4.5, fill: colours.ink }));
  for (const pin of pins) {
    const { x, y, align } = pinLabel(at, pin), colour = pinColour(pins, pin, colours.ink);
    drawing.append(
      svg("circle", { cx: at.x(pin.token), cy: at.y(pin.level), r: 5, fill: "none", stroke: colour, "stroke-width": 2 }));
    if (!isFirst(pins, pin)) continue;
    drawing.append(
      svg("text", { x, y, "text-anchor": anchors[align], "dominant-baseline": "middle", fill: colour,
        "font-weight": 600 }, pin.name));
  }
  return drawing;
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
