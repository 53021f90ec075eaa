// Numbers and tokens as text, and elements made of text alone: nothing here parses HTML.

const KINDS = ["residual", "attention", "mlp"];
const KIND_NAMES = { residual: "residual", attention: "attention", mlp: "MLP" };

const whole = (n) => n.toLocaleString("en-US");
const digits = (x, n = 3) => (x === null ? "–" : x === 0 ? "0" : String(Number(x.toPrecision(n))));
const fixed = (x, n = 3) => (x === null ? "–" : x.toFixed(n));
const percent = (x) => `${digits(100 * x)} %`;
const sizeText = (size) => `s = ${digits(size, 10)}`;
const edgeText = (n) => `${whole(n)} edge${n === 1 ? "" : "s"}`;

/** What a reader sees as characters, none of them cut in two; code points in older browsers. */
const characters = (text) => Intl.Segmenter === undefined ? Array.from(text)
  : Array.from(new Intl.Segmenter("en", { granularity: "grapheme" }).segment(text), (s) => s.segment);

/** A text in a right-to-left script between signs that keep its direction to itself. */
const isolated = (text) => RIGHT_TO_LEFT.test(text) ? `\u2068${text}\u2069` : text;
const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;

/** A token with its white space made visible. */
function visible(token, longest = 24) {
  const shown = token.replace(/ /g, "·").replace(/\n/g, "↵").replace(/\r/g, "␍").replace(/\t/g, "⇥");
  const seen = characters(shown);
  return isolated(seen.length <= longest ? shown : `${seen.slice(0, longest - 1).join("")}…`);
}

/** A token between quotation marks, with its position if one is given. */
const quoted = (token, position) =>
  isolated(JSON.stringify(token)) + (position === undefined ? "" : ` (${position})`);

/** An HTML element with attributes and children; strings become text nodes. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** An SVG element with attributes and children. */
function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A row of table cells: the first is a heading of the row where `heading` is true. */
function tableRow(cells, heading = false) {
  return element("tr", {}, ...cells.map((cell, i) =>
    heading && i === 0 ? element("th", { scope: "row" }, cell) : element("td", {}, cell)));
}

/** A head of column names. */
const tableHead = (names) =>
  element("thead", {}, element("tr", {}, ...names.map((n) => element("th", { scope: "col" }, n))));
