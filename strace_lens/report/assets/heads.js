// A grid of layers by heads: how many of each one's edges the trace holds. Its cells filter the drawing.

/** The grid inside `parent`; `show(view)` counts the edges that pass the other filters. */
function makeHeads(parent, result, edges, choice, tip, say, changed) {
  const { shape } = result, columns = columnsOf(shape);
  const canvas = element("canvas", {
    class: "heads", tabindex: "0", role: "application",
    "aria-label": `Layers by heads: arrow keys move over ${shape.layers} layers and ${columns} columns, ` +
      "Enter selects a cell and Escape none",
  });
  const said = element("p", { class: "hint" });
  const box = element("div", { class: "drawing" }, canvas);
  parent.append(element("h3", {}, "Edges kept by each head"), box, said);
  const state = { counts: new Uint32Array(shape.layers * columns), total: 0, at: null, focus: null };

  /** Edges of the whole graph in a cell. */
  const wholeOf = (layer, column) =>
    column < shape.heads ? result.reachable[1][layer] / shape.heads
      : result.reachable[column === columns - 1 ? 0 : 2][layer];
  const shareOf = (layer, column) => {
    const all = wholeOf(layer, column);
    return all > 0 ? state.counts[layer * columns + column] / all : 0;
  };
  const kindOf = (column) => (column < shape.heads ? 1 : column === columns - 1 ? 0 : 2);
  const cellText = ({ layer, column }) => {
    const kept = state.counts[layer * columns + column];
    const selected = choice.cells.has(layer * columns + column) ? "; selected" : "";
    return `L${layer} ${columnName(shape, column)}: ${whole(kept)} of ${edgeText(wholeOf(layer, column))} ` +
      `(${percent(shareOf(layer, column))}), ${percent(state.total ? kept / state.total : 0)} of those shown${selected}`;
  };

  const lay = () => {
    const left = 18 + widest([layerLabel(shape.layers - 1)]), top = 4, foot = 18;
    const gap = 6; // between the heads and the other kinds
    const dx = Math.max(7, Math.min(26, (box.clientWidth - left - gap - 30) / columns));
    const dy = Math.max(6, Math.min(22, 330 / shape.layers));
    state.at = {
      dx, dy, left, top,
      x: (column) => left + column * dx + (column >= shape.heads ? gap : 0),
      y: (layer) => top + (shape.layers - 1 - layer) * dy,
      width: left + columns * dx + gap + 30,
      height: top + shape.layers * dy + foot,
    };
    draw();
  };
  const draw = () => {
    const { at } = state, colours = themeColours(), context = sized(canvas, at);
    const most = [0, 0, 0];
    for (let layer = 0; layer < shape.layers; layer++) {
      for (let column = 0; column < columns; column++) {
        most[kindOf(column)] = Math.max(most[kindOf(column)], shareOf(layer, column));
      }
    }
    for (let layer = 0; layer < shape.layers; layer++) {
      for (let column = 0; column < columns; column++) {
        const share = shareOf(layer, column), kind = kindOf(column);
        context.globalAlpha = share > 0 ? 0.12 + 0.88 * Math.sqrt(share / most[kind]) : 1;
        context.fillStyle = share > 0 ? colours.kinds[kind] : colours.panel;
        context.fillRect(at.x(column), at.y(layer), at.dx - 1, at.dy - 1);
        context.globalAlpha = 1;
        if (choice.cells.has(layer * columns + column)) frame(context, at, layer, column, colours.ink);
      }
    }
    if (state.focus !== null) {
      context.setLineDash([2, 2]);
      frame(context, at, state.focus.layer, state.focus.column, colours.ink);
      context.setLineDash([]);
    }
    context.fillStyle = colours.ink;
    context.font = FONT;
    context.textBaseline = "middle";
    context.textAlign = "right";
    const every = Math.ceil(13 / at.dy);
    for (let layer = shape.layers - 1; layer >= 0; layer -= every) {
      context.fillText(layerLabel(layer), at.left - 6, at.y(layer) + at.dy / 2);
    }
    context.textAlign = "center";
    const foot = at.top + shape.layers * at.dy + 10, apart = Math.ceil(22 / at.dx);
    for (let head = 0; head < shape.heads; head += apart) context.fillText(`H${head}`, at.x(head) + at.dx / 2, foot);
    context.textAlign = "left";
    context.fillText(shape.mlp ? "MLP, res." : "res.", at.x(shape.heads), foot);
    said.textContent = (choice.cells.size ? `${whole(choice.cells.size)} selected. ` : "Click a head or a layer to draw it alone. ") +
      `Full colour: ${percent(most[1])} of a head's edges${shape.mlp ? `, ${percent(most[2])} of an MLP's` : ""}, ` +
      `${percent(most[0])} of a layer's residual edges.`;
  };
  const frame = (context, at, layer, column, colour) => {
    context.strokeStyle = colour;
    context.lineWidth = 1.5;
    context.strokeRect(at.x(column) - 0.5, at.y(layer) - 0.5, at.dx, at.dy);
  };

  /** The cell under a point, with column -1 for the label of a layer; null elsewhere. */
  const cellAt = (event) => {
    const bounds = canvas.getBoundingClientRect(), { at } = state;
    const x = event.clientX - bounds.left, y = event.clientY - bounds.top;
    const layer = shape.layers - 1 - Math.floor((y - at.top) / at.dy);
    if (layer < 0 || layer >= shape.layers) return null;
    if (x < at.left - 2) return { layer, column: -1 };
    for (let column = 0; column < columns; column++) {
      if (x >= at.x(column) && x < at.x(column) + at.dx) return { layer, column };
    }
    return null;
  };
  const toggle = ({ layer, column }) => {
    const row = column >= 0 ? [column] : Array.from({ length: columns }, (_, i) => i);
    const keys = row.map((each) => layer * columns + each);
    const all = keys.every((key) => choice.cells.has(key));
    for (const key of keys) all ? choice.cells.delete(key) : choice.cells.add(key);
    changed();
  };
  canvas.addEventListener("pointermove", (event) => {
    const cell = cellAt(event);
    if (cell === null) return tip.hide();
    tip.show(event, cell.column < 0 ? [`L${cell.layer}: click for the whole layer`]
      : [cellText(cell), cell.column < shape.heads ? `blocks.${cell.layer}.attn.hook_z, head ${cell.column}`
        : cell.column === columns - 1 ? `from ${result.levels[Math.floor(cell.layer * (result.levels.length - 1) / shape.layers)]}`
          : `blocks.${cell.layer}.hook_mlp_out`]);
  });
  canvas.addEventListener("pointerleave", () => tip.hide());
  canvas.addEventListener("click", (event) => {
    const cell = cellAt(event);
    if (cell !== null) toggle(cell);
  });
  canvas.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] };
    if (event.key === "Escape") {
      choice.cells.clear();
      return changed();
    }
    if ((event.key === "Enter" || event.key === " ") && state.focus !== null) {
      event.preventDefault();
      toggle(state.focus);
      return say(cellText(state.focus));
    }
    if (!(event.key in moves)) return;
    event.preventDefault();
    const [up, across] = moves[event.key];
    const bound = (value, limit) => Math.max(0, Math.min(limit - 1, value));
    state.focus = state.focus === null ? { layer: shape.layers - 1, column: 0 }
      : { layer: bound(state.focus.layer + up, shape.layers), column: bound(state.focus.column + across, columns) };
    draw();
    say(cellText(state.focus));
  });
  canvas.addEventListener("blur", () => {
    state.focus = null;
    draw();
  });

  return {
    lay,
    show(view) {
      state.counts.fill(0);
      state.total = 0;
      for (let rank = 0; rank < view.pass.length; rank++) {
        if (!view.pass[rank]) continue;
        state.counts[cellOf(edges, shape, rank)]++;
        state.total++;
      }
      if (state.at !== null) draw();
    },
    /** Edges counted in a cell: for tests and scripts. */
    count: (layer, column) => state.counts[layer * columns + column],
    /** Where a cell lies on the screen. */
    locate(layer, column) {
      const bounds = canvas.getBoundingClientRect();
      return [bounds.left + state.at.x(column) + state.at.dx / 2, bounds.top + state.at.y(layer) + state.at.dy / 2];
    },
  };
}
