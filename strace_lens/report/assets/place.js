// What a reader chose, kept in the fragment of the page's address, so that a link shows it again.

/** The window whose address is kept: that of the page around, where this one is a part of it. */
const home = (() => {
  try {
    return window.frameElement?.hasAttribute("srcdoc") ? window.parent : window;
  } catch {
    return window; // a frame of another site
  }
})();

/** Whole numbers between dots, if each is below its limit; null for anything else. */
function numbers(text, limits) {
  const values = text.split(".").map((part) => (/^\d+$/.test(part) ? Number(part) : NaN));
  return values.length === limits.length && values.every((v, i) => v < limits[i]) ? values : null;
}

/** Read a choice out of the fragment; what does not fit the result is left out. */
function readChoice(given, number, choice, result) {
  const get = (name) => given.get(`${name}${number}`);
  const { tokens, layers } = result.shape, levels = result.levels.length, columns = columnsOf(result.shape);
  const node = numbers(get("node") ?? "", [tokens, levels]);
  choice.node = node === null ? null : { token: node[0], level: node[1] };
  choice.through = get("through") === "1";
  choice.least = Math.max(0, Number(get("least") ?? 0) || 0);
  choice.draw = ["edges", "bundles"].includes(get("draw")) ? get("draw") : "auto";
  choice.width = get("width") === "number" ? "number" : "importance";
  choice.cells.clear();
  for (const cell of (get("heads") ?? "").split(" ")) {
    const found = numbers(cell, [layers, columns]);
    if (found !== null) choice.cells.add(found[0] * columns + found[1]);
  }
  choice.pins = given.getAll(`pin${number}`).flatMap((text) => {
    const [, place, name] = /^(\d+\.\d+) ?(.*)$/s.exec(text) ?? [null, "", ""];
    const found = numbers(place, [tokens, levels]);
    return found === null ? [] : [{ token: found[0], level: found[1], name }];
  });
}

/** Add a choice to the fragment, leaving out what is as at first. */
function writeChoice(given, number, choice, result) {
  const columns = columnsOf(result.shape);
  const set = (name, value) => { if (value) given.set(`${name}${number}`, String(value)); };
  set("node", choice.node && `${choice.node.token}.${choice.node.level}`);
  set("through", choice.through ? 1 : 0);
  set("least", choice.least && digits(choice.least, 6));
  set("draw", choice.draw === "auto" ? "" : choice.draw);
  set("width", choice.width === "importance" ? "" : choice.width);
  set("heads", [...choice.cells].sort((a, b) => a - b)
    .map((key) => `${Math.floor(key / columns)}.${key % columns}`).join(" "));
  for (const { token, level, name } of choice.pins) given.append(`pin${number}`, `${token}.${level} ${name}`);
}

const readFragment = () => new URLSearchParams(home.location.hash.slice(1));
let later = 0;

/** Keep a fragment in the address, at most a few times a second: browsers bound how often it changes. */
function keepFragment(make) {
  clearTimeout(later);
  later = setTimeout(() => {
    try {
      home.history.replaceState(null, "", `#${make()}`);
    } catch {
      // A page within another may not change its address; everything else works.
    }
  }, 250);
}
