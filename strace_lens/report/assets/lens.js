// What the nodes and heads of a prompt say to the vocabulary, out of its packed text (report/lens.py).

/** The lens of a result: its numbers by node, head and MLP; a reason where there is none, null where none was asked for. */
async function unpackLens(packed, result) {
  if (packed === undefined) return null;
  if (typeof packed === "string") return { reason: packed };
  const { heads, tokens, mlp } = result.shape, { shown, both, rows } = packed;
  const numbers = JSON.parse(new TextDecoder().decode(await inflate(packed.numbers)));
  const attention = await inflate(packed.attention);
  const writers = heads + (mlp ? 1 : 0), firstRow = tokens - rows;
  const before = (row) => (row * (row + 1)) / 2; // entries of the rows above one of a triangle
  const area = before(tokens) - before(firstRow);
  const words = (ids, values, start, stop) => Array.from({ length: stop - start }, (_, i) =>
    [numbers.words[ids[start + i]], values[start + i]]);
  return {
    reason: null,
    target: packed.target,
    capped: packed.capped,
    firstRow,
    /** The most probable next tokens if the model ended at a node: [token, probability]. */
    node: ({ token, level }) => {
      const start = (level * tokens + token) * shown;
      return words(numbers.ids, numbers.probabilities, start, start + shown);
    },
    /** The target's logit if the last token's stream were read at a level. */
    logit: (level) => numbers.logits[level],
    /** What a head adds to it by reading a token, and in all. */
    headAt: (layer, head, token) => numbers.heads[(layer * heads + head) * tokens + token],
    head: (layer, head) => numbers.heads.slice((layer * heads + head) * tokens, (layer * heads + head + 1) * tokens)
      .reduce((sum, value) => sum + value, 0),
    mlp: (layer) => numbers.mlps[layer],
    /** Tokens that a head, or the MLP as the column after the heads, promotes and suppresses: [token, logits]. */
    promoted(layer, column) {
      const start = (layer * writers + column) * both;
      return words(numbers.written, numbers.added, start, start + both / 2);
    },
    suppressed(layer, column) {
      const start = (layer * writers + column) * both;
      return words(numbers.written, numbers.added, start + both / 2, start + both);
    },
    /** How much a head attends from one token to another; only rows from `firstRow` on are known. */
    attention: (layer, head, query, key) =>
      (attention[(layer * heads + head) * area + before(query) - before(firstRow) + key] / 255) ** 2,
  };
}

/** Logits with their sign. */
const signed = (x, n = 2) => (x === 0 ? "0" : `${x < 0 ? "−" : "+"}${digits(Math.abs(x), n)}`);

/** Tokens and what they are given, one after another. */
const wordList = (words, number) => element("span", { class: "words" }, ...words.map(([word, value]) =>
  element("span", {}, element("code", {}, visible(word)), ` ${number(value)}`)));

/** What is said where there are no readouts; nothing where none were asked for. */
const lensMissing = (lens) => (lens.reason === null ? [] : [element("p", { class: "hint" }, lens.reason)]);
