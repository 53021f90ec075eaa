// The attention pattern of the head that was selected last, and what it writes at the last token.

const ATTENDED = 8; // rows of the table

/** The head inside `parent`; returns a function that shows the choice's last head or MLP, or none. */
function makePattern(parent, result, lens, choice, tip) {
  const box = element("div", { class: "pattern" });
  parent.append(box);
  const { shape, tokens } = result, columns = columnsOf(shape), last = shape.tokens - 1;
  const names = tokens.map((token) => visible(token, 10));
  let shown = null, middle = null;

  const writes = (layer, column) => {
    const value = column < shape.heads ? lens.head(layer, column) : lens.mlp(layer);
    return [
      element("p", { class: "numbers" }, `At the last token it adds ${signed(value)} to the logit of ${lens.target}.`),
      element("p", { class: "numbers" }, "Promotes ", wordList(lens.promoted(layer, column), signed)),
      element("p", { class: "numbers" }, "Suppresses ", wordList(lens.suppressed(layer, column), signed)),
    ];
  };
  const lastRow = (layer, head) => {
    const rows = names.map((_, key) => [key, lens.attention(layer, head, last, key)])
      .sort((a, b) => b[1] - a[1] || a[0] - b[0]).slice(0, ATTENDED);
    return element("table", { class: "attended" },
      element("caption", {}, `What the last token, ${quoted(tokens[last])}, attends to` +
        (shape.tokens > ATTENDED ? `; the first ${ATTENDED}` : "")),
      tableHead(["token", "attention", `adds to ${lens.target}`]),
      element("tbody", {}, ...rows.map(([key, value]) => element("tr", {},
        element("th", { scope: "row" }, visible(tokens[key]), element("small", {}, String(key))),
        element("td", {}, bar(value, "attention")),
        element("td", {}, signed(lens.headAt(layer, head, key)))))));
  };
  const heatMap = (layer, head) => {
    const canvas = element("canvas", { role: "img",
      "aria-label": `Attention of L${layer} H${head} from each token (rows) to those before it (columns)` });
    const holder = element("div", { class: "drawing" }, canvas);
    box.append(holder);
    const label = 8 + widest(names), room = holder.clientWidth - label - 4;
    const cell = Math.max(3, Math.min(18, Math.floor(room / tokens.length)));
    const side = cell > 5 ? cell - 1 : cell;
    const every = Math.ceil(11 / cell); // labels apart enough to be read
    const at = { width: label + cell * tokens.length + 2, height: cell * tokens.length + label + 2 };
    const context = sized(canvas, at), colours = themeColours();
    for (let query = 0; query <= last; query++) {
      for (let key = 0; key <= query; key++) {
        context.fillStyle = colours.panel;
        context.globalAlpha = 1;
        context.fillRect(label + key * cell, query * cell, side, side);
        context.fillStyle = colours.kinds[1];
        context.globalAlpha = Math.sqrt(lens.attention(layer, head, query, key));
        context.fillRect(label + key * cell, query * cell, side, side);
      }
    }
    context.globalAlpha = 1;
    context.fillStyle = colours.ink;
    context.font = FONT;
    context.textBaseline = "middle";
    context.textAlign = "right";
    for (let token = last; token >= 0; token -= every) {
      context.fillText(names[token], label - 4, (token + 0.5) * cell);
      context.save();
      context.translate(label + (token + 0.5) * cell, cell * tokens.length + 5);
      context.rotate(-Math.PI / 2);
      context.fillText(names[token], 0, 0);
      context.restore();
    }
    middle = (query, key) => {
      const bounds = canvas.getBoundingClientRect();
      return [bounds.left + label + (key + 0.5) * cell, bounds.top + (query + 0.5) * cell];
    };
    canvas.addEventListener("pointermove", (event) => {
      const bounds = canvas.getBoundingClientRect();
      const key = Math.floor((event.clientX - bounds.left - label) / cell), query = Math.floor((event.clientY - bounds.top) / cell);
      if (key < 0 || query > last || key > query) return tip.hide();
      tip.show(event, [`from ${quoted(tokens[query], query)}`, `to ${quoted(tokens[key], key)}`,
        `attention ${fixed(lens.attention(layer, head, query, key), 2)}`]);
    });
    canvas.addEventListener("pointerleave", () => tip.hide());
  };
  const draw = () => {
    box.replaceChildren();
    if (shown === null || lens === null) return;
    if (lens.reason !== null) return box.append(...lensMissing(lens));
    const { layer, column } = shown;
    box.append(element("h3", {}, `L${layer} ${columnName(shape, column)}`));
    box.append(...writes(layer, column));
    if (column >= shape.heads) return;
    box.append(lastRow(layer, column));
    if (lens.firstRow > 0) {
      return box.append(element("p", { class: "hint" },
        "The prompt is too long for whole attention patterns on this page: the last token's row alone is kept."));
    }
    box.append(element("p", { class: "hint" }, "The whole pattern: rows attend to columns; colour is the square root of attention."));
    heatMap(layer, column);
  };
  const writers = shape.heads + (shape.mlp ? 1 : 0);
  return {
    lay: draw,
    /** Where an entry of the pattern lies on the screen: for tests and scripts. */
    locate: (query, key) => middle(query, key),
    show() {
      const key = [...choice.cells].filter((cell) => cell % columns < writers).at(-1);
      const same = key === undefined ? shown === null
        : shown !== null && shown.layer * columns + shown.column === key;
      if (same) return;
      shown = key === undefined ? null : { layer: Math.floor(key / columns), column: key % columns };
      draw();
    },
  };
}
