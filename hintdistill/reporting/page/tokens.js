// The tokens of a step, coloured by the change of their probability. Numbers stand under every token that moved.
const MOVED = 0.005;
const SURE = 0.95;

// Class of a change: up1 to up3, down1 to down3; as in templates.py.
function moved(start, end) {
  const change = Math.abs(end - start);
  if (change < 0.02) return "";
  return (end > start ? "up" : "down") + (1 + (change >= 0.15) + (change >= 0.4));
}

// A probability in two digits: ".74", "1", "0".
function brief(p) {
  if (p >= 0.995) return "1";
  return p < 0.005 ? "0" : p.toFixed(2).slice(1);
}

function visible(text) {
  return text.replaceAll("\n", "↵\n");
}

function tokenLine(d, start, end, title) {
  const { text, quote, instead } = d.tokens;
  const from = d.tokens[start];
  const to = d.tokens[end];
  const told = h("p", { class: "told mute", "aria-live": "polite" });
  const line = h("div", { class: "step", role: "group", "aria-label": title });
  let run = null;
  text.forEach((word, i) => {
    const quoted = quote !== null && i >= quote[0] && i < quote[1];
    const decision = d.decision !== null && d.decision.position === i;
    if (Math.abs(to[i] - from[i]) < MOVED && to[i] >= SURE && !decision) {
      if (!run || run.quoted !== quoted) {
        run = { quoted, node: h("span", { class: quoted ? "q" : null }) };
        line.append(run.node);
      }
      run.node.append(shown(word));
      return;
    }
    run = null;
    const facts = `token ${i} “${word}”${quoted ? ", quoted" : ""}${decision ? ", decision token" : ""}: ` + ["before", "hinted", "after"]
      .filter((when) => d.tokens[when]).map((when) => `${when} ${number(d.tokens[when][i])}`).join(", ") +
      `; likeliest under the hint: “${instead[i] ?? word}”`;
    const tell = () => { told.textContent = shown(facts); };
    line.append(h("button", {
      type: "button", class: ["tok", moved(from[i], to[i]), quoted ? "q" : "", decision ? "d" : ""].filter(Boolean).join(" "),
      "aria-label": shown(facts), onclick: tell, onfocus: tell,
    }, h("span", {}, visible(word)), h("i", {}, `${brief(from[i])}→${brief(to[i])}`)));
    if (word.includes("\n")) line.append(h("br"));
  });
  return h("div", {}, h("h4", {}, title), line, told);
}

function tokenTable(d) {
  const rows = () => d.tokens.text.map((word, i) => h("tr", {},
    h("th", { scope: "row", class: "n plain" }, String(i)), h("td", {}, h("code", {}, visible(word))),
    ...["before", "hinted", "after"].map((when) => h("td", { class: "n" }, d.tokens[when] ? number(d.tokens[when][i]) : "–")),
    h("td", {}, h("code", {}, visible(d.tokens.instead[i] ?? word)))));
  const head = ["token", "text", "before", "hinted", "after", "likeliest under the hint"].map((name, i) =>
    h("th", { scope: "col", class: [0, 2, 3, 4].includes(i) ? "n" : null }, name));
  const all = h("details", {}, h("summary", {}, `All ${d.tokens.text.length} tokens with their numbers`));
  all.addEventListener("toggle", () => {
    if (all.open && all.children.length === 1)
      all.append(box("Tokens", h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows()))));
  });
  return all;
}

function box(name, ...children) {
  return h("div", { class: "box", role: "region", tabindex: "0", "aria-label": name }, ...children);
}
