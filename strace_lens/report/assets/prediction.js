// The next token: the trace's probabilities beside the model's, head and tail apart.

/** A probability as a number over a bar. */
function bar(probability, name) {
  const fill = element("i", { class: `fill ${name}`, style: `width: ${100 * Math.min(1, probability)}%` });
  return element("div", { class: "bar-cell" }, element("span", { class: "track" }, fill),
    element("span", { class: "number" }, fixed(probability)));
}

/** The table of predictions inside `parent`; returns a function that shows one size. */
function makePrediction(parent, result) {
  const numbers = element("p", { class: "numbers" });
  const body = element("tbody");
  const table = element("table", { class: "prediction" },
    element("caption", {}, `Next token; the head is the model's top-${result.head} nucleus, the tail all others`),
    tableHead(["token", "model", "trace"]), body);
  parent.append(element("h3", {}, "Prediction"), table, numbers);
  return (index) => {
    const row = result.sizes[index];
    const line = (token, part, model, trace, name) => element("tr", { class: `${part} ${name}` },
      element("th", { scope: "row" }, token, element("small", {}, part)),
      element("td", {}, bar(model, "model")), element("td", {}, bar(trace, "trace")));
    const lines = row.top_tokens.map(([token, model, trace, head]) =>
      line(visible(token), head ? "head" : "tail", model, trace, token === row.top[0] ? "favourite" : ""));
    // What is not listed one by one, so that each column sums to one.
    const rest = (part, column, all) => Math.max(0, all - row.top_tokens
      .filter((token) => token[3] === (part === "head")).reduce((sum, token) => sum + token[column], 0));
    const headModel = rest("head", 1, result.head_mass), headTrace = rest("head", 2, row.trace_head_mass);
    if (headModel > 5e-4 || headTrace > 5e-4) lines.push(line("other tokens", "head", headModel, headTrace, "rest"));
    lines.push(line("other tokens", "tail", rest("tail", 1, 1 - result.head_mass), rest("tail", 2, 1 - row.trace_head_mass), "rest"));
    body.replaceChildren(...lines);
    numbers.textContent = `total variation ${fixed(row.tv)} (head ${fixed(row.head_error)}, tail ` +
      `${fixed(row.tail_error)}), KL ${digits(row.kl)} nats; top-1 ${row.top1 ? "agrees" : "differs"}; ` +
      `shared nucleus ${row.nucleus === 0 ? "none" : percent(row.nucleus)}`;
  };
}
