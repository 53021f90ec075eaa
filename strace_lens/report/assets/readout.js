// What a chosen node says to the vocabulary, and what its heads and MLP write into it.

const WRITERS = 12; // rows of the table

/** The readout inside `parent`; returns a function that shows a node, or none. */
function makeReadout(parent, result, lens) {
  const box = element("div", { class: "readout" });
  parent.append(box);
  const { shape, levels } = result, last = shape.tokens - 1;
  const sublayers = (levels.length - 1) / shape.layers;
  /** The heads or the MLP that write into nodes of a level: their column in the grid. */
  const writersOf = (level) => {
    const sublayer = (level - 1) % sublayers;
    const heads = sublayer === 0 ? Array.from({ length: shape.heads }, (_, head) => head) : [];
    return shape.mlp && sublayer === sublayers - 1 ? [...heads, shape.heads] : heads;
  };
  const direct = (node) => {
    if (node.token !== last) {
      return `Only the last token is read out: this node acts on ${lens.target} by way of later heads alone.`;
    }
    const cap = lens.capped ? ", before the cap on logits" : "";
    return `Logit of ${lens.target} read off this node: ${signed(lens.logit(node.level), 3)}; off the output: ` +
      `${signed(lens.logit(levels.length - 1), 3)} (above the vocabulary's mean, at the norm's scale of the full run${cap}).`;
  };
  const writerTable = (node) => {
    const layer = Math.floor((node.level - 1) / sublayers);
    const rows = writersOf(node.level).map((column) => ({
      column, value: column < shape.heads ? lens.head(layer, column) : lens.mlp(layer),
    })).sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
    const more = rows.length > WRITERS ? `; the ${WRITERS} of most effect` : "";
    return element("div", { class: "scrolled" }, element("table", { class: "writers" },
      element("caption", {}, `What is written into this node, in logits at the norm's scale of the full run${more}`),
      tableHead(["by", `adds to ${lens.target}`, "promotes", "suppresses"]),
      element("tbody", {}, ...rows.slice(0, WRITERS).map(({ column, value }) => tableRow([
        `L${layer} ${columnName(shape, column)}`, signed(value),
        wordList(lens.promoted(layer, column), signed), wordList(lens.suppressed(layer, column), signed),
      ], true)))));
  };
  return (node) => {
    box.replaceChildren();
    if (lens === null || node === null) return;
    if (lens.reason !== null) return box.append(...lensMissing(lens));
    box.append(element("table", { class: "said" },
      element("caption", {}, "If the model ended at this node, its next token would be"),
      element("tbody", {}, ...lens.node(node).map(([word, value]) =>
        element("tr", {}, element("th", { scope: "row" }, visible(word)), element("td", {}, bar(value, "model")))))),
    element("p", { class: "numbers" }, direct(node)));
    if (node.token === last && node.level > 0) box.append(writerTable(node));
  };
}
