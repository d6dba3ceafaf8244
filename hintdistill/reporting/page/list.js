// The list of findings: sorted, filtered and searched; only the rows in sight are in the page.
const ROW = 58;
const SPARE = 8;
const SORTS = {
  "error left": (a, b) => (b.left ?? -1) - (a.left ?? -1),
  odds: (a, b) => (b.odds ?? -Infinity) - (a.odds ?? -Infinity) || 0,
  class: (a, b) => compare(a.cls, b.cls),
  trace: (a, b) => a.trace - b.trace || a.step - b.step,
};
const FILTERS = {
  class: (f) => [f.cls], reason: (f) => (f.ok ? ["accepted"] : f.why), critic: (f) => [f.critic], split: (f) => [f.split],
  trained: (f) => [f.trained ? "trained" : "not trained"], level: (f) => [f.level], placement: (f) => [f.place], twin: (f) => [f.twin],
};

function compare(a, b) {
  return a < b ? -1 : a > b ? 1 : 0;
}

// Those that fit all filters, sorted; ties keep the order of the error that is left.
function chosen(findings, filters, sort, hits) {
  const found = findings.filter((f, i) => (hits === null || hits.has(i)) &&
    Object.entries(filters).every(([name, value]) => value === null || FILTERS[name](f).includes(value)));
  return found.sort(SORTS["error left"]).sort(SORTS[sort]);
}

// The values that a filter can take, each with the number of findings that have it.
function choices(findings, name) {
  const counts = new Map();
  for (const f of findings) for (const value of FILTERS[name](f)) counts.set(value, (counts.get(value) ?? 0) + 1);
  return [...counts].sort(([a], [b]) => compare(a, b));
}

// Numbers of the findings in which a text stands: in their own words, in their step, or in their trace. Case is ignored.
// `going` is asked between chunks whether the answer is still wanted; the answer is null when it is not.
async function search(index, words, going) {
  const wanted = words.toLocaleLowerCase();
  const holds = (value) => JSON.stringify(value).toLocaleLowerCase().includes(JSON.stringify(wanted).slice(1, -1));
  const hits = new Set();
  const traces = new Set(index.traces.flatMap((name, i) => (name.toLocaleLowerCase().includes(wanted) ? [i] : [])));
  for (const part of new Set(index.places.filter(Boolean).map(([chunk]) => chunk))) {
    const pages = await unpack("t" + part);
    if (!going()) return null;
    index.places.forEach((place, i) => { if (place?.[0] === part && !traces.has(i) && holds(pages[place[1]])) traces.add(i); });
  }
  for (const part of new Set(index.findings.map((f) => f.at[0]))) {
    const some = await unpack("d" + part);
    if (!going()) return null;
    index.findings.forEach((f, i) => {
      if (f.at[0] !== part) return;
      const d = some[f.at[1]];
      if (traces.has(f.trace) || holds([f.cls, f.key, ...f.why]) || holds([d.hint, d.quote, d.evidence, d.above, d.below, d.tokens.text.join("")])) hits.add(i);
    });
  }
  return hits;
}

function rowView(index, f, i, count, selected) {
  const p = f.p.map((x) => (x === null ? "–" : brief(x))).join(" → ");
  return h("div", {
    class: "line", role: "option", id: "row-" + f.key, "data-at": i, "aria-selected": String(selected), "aria-setsize": count, "aria-posinset": i + 1,
  }, h("strong", {}, f.cls || "no class"), h("span", {}, p), h("span", { class: "mute" }, `${index.traces[f.trace]}:${f.step}`),
  h("span", { class: f.ok ? "good" : "bad" }, `${f.ok ? "accepted" : f.why[0] ?? "rejected"}${f.why.length > 1 && !f.ok ? " +" + (f.why.length - 1) : ""}${f.trained ? ", trained" : ""}`));
}
