// One finding: its verdict, what the student says, the trace with the hint and the step in place, and what else is known of it.
async function findingView(index, row, open) {
  const [chunk, at] = row.at;
  const d = (await island("d" + chunk))[at];
  const place = index.places[row.trace];
  const trace = place ? (await island("t" + place[0]))[place[1]] : null;
  return [
    heading(index, row), ...reasons(index, row, d), copyButtons(index, row, d), decisionView(d), traceView(index, row, d, trace, open),
    tokenTable(d), placebosView(d), twinsView(d), answersView(row, trace), othersView(index, row, open),
  ].filter(Boolean);
}

function heading(index, row) {
  return h("div", {}, h("h3", {}, row.cls || "no class"),
    h("p", { class: "mute" }, [`${index.traces[row.trace]}, step ${row.step}`, row.split, `critic ${row.critic}`, row.place,
      row.level && `hint level ${row.level}`, row.trained ? "trained on" : "not trained on"].filter(Boolean).join(" · ")));
}

// The verdict; each reason of the gate is explained when it is asked.
function reasons(index, row, d) {
  if (row.ok && !row.why.length) return [h("p", {}, h("span", { class: "pill good" }, "accepted"))];
  const told = h("div", {});
  const buttons = row.why.map((why) => h("button", {
    type: "button", class: "pill bad", "aria-expanded": "false",
    onclick: (event) => {
      const opened = event.target.getAttribute("aria-expanded") !== "true";
      for (const other of buttons) other.setAttribute("aria-expanded", "false");
      event.target.setAttribute("aria-expanded", String(opened));
      const exact = d.guards.filter((g) => g.startsWith(why));
      told.replaceChildren(...(opened ? [h("p", { class: "why" }, `${why}: ${index.reasons[why]} ${exact.join("; ")}`)] : []));
    },
  }, why));
  return [h("p", {}, row.ok ? "accepted with the gate off, although: " : "rejected: ", ...buttons), told];
}

function copyButtons(index, row, d) {
  const name = `${index.traces[row.trace]}:${row.step}`;
  const said = h("span", { class: "mute", role: "status" });
  const copy = async (text, what) => { said.textContent = (await copyText(text)) ? `${what} copied` : "this browser does not let a page copy"; };
  const button = (title, text) => h("button", { type: "button", onclick: () => copy(text(), title.slice(5)) }, title);
  return h("div", { class: "acts" },
    button("Copy link", () => location.href.split("#")[0] + "#f-" + row.key), button("Copy name", () => name),
    button("Copy finding", () => plainText(name, row, d)), said);
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = h("textarea", { class: "hidden", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    const before = document.activeElement;
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    before?.focus();
    return done;
  }
}

function plainText(name, row, d) {
  const decision = d.decision;
  return [
    `${name} ${row.cls} ${row.ok ? "accepted" : row.why.join(", ")}${row.trained ? ", trained" : ""}`, `hint: ${d.hint}`,
    `step: ${d.tokens.text.join("")}`,
    decision && `decision token ${JSON.stringify(decision.token)}: before ${decision.before}, hinted ${decision.hinted}, after ${decision.after ?? "not measured"}`,
  ].filter(Boolean).join("\n") + "\n";
}

const NOT_AFTER = "not measured: nothing was trained, or the student was not read again";

function decisionView(d) {
  const decision = d.decision;
  if (!decision) return h("p", {}, "The hint changes no token of the span: there is no decision token.");
  const legal = d.legal_mass_gain === null ? "" : `, legal continuations ${d.legal_mass_gain >= 0 ? "+" : ""}${number(d.legal_mass_gain, 2)}`;
  const facts = `Effect ${number(decision.effect_nats, 2)} nats, odds ${number(decision.odds_nats, 2)} nats, specificity ${number(d.specificity_nats, 2)} nats${legal}.`;
  const when = ["before", "hinted", "after"];
  const cells = (what) => when.map((w) => h("td", {}, what(w)));
  const ranks = [0, 1, 2].map((rank) => h("tr", {}, h("th", { scope: "row" }, `likeliest ${rank + 1}`), cells((w) => {
    const found = decision.top?.[w]?.[rank];
    return found ? [h("code", {}, visible(found.text)), ` ${number(found.p)}`] : w === "after" && decision.after !== null ? "not kept by this run" : "–";
  })));
  return h("div", {}, h("h4", {}, "What the student says at the decision token"),
    box("What the student says", h("table", {},
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "continuation"), ["before", "under the hint", "after training, no hint"].map((w) => h("th", { scope: "col" }, w)))),
      h("tbody", {}, h("tr", {}, h("th", { scope: "row" }, "the error ", h("code", {}, visible(decision.token))),
        cells((w) => decision[w] === null ? NOT_AFTER : number(decision[w]))), decision.top ? ranks : []))),
    h("p", { class: "mute" }, facts));
}

// The hint's own tokens: what the student was meant to read, and what the template puts around it.
function hintView(row, d) {
  const block = d.block ?? d.hint ?? "";
  const at = d.hint ? block.indexOf(d.hint) : -1;
  const inner = at < 0 ? [block] : [h("span", { class: "wrap" }, block.slice(0, at)), h("span", { class: "said" }, d.hint),
    h("span", { class: "wrap" }, block.slice(at + d.hint.length))];
  return h("div", { class: "hint" }, h("span", { class: "mute" }, `the hint, spliced in here (${row.place})${d.block ? "" : "; its wrapper is not kept by this run"}`), h("pre", {}, ...inner));
}

function stepView(row, d) {
  const lines = [h("pre", { class: "mute" }, d.above), hintView(row, d), h("pre", { class: "mute" }, d.below)];
  lines.push(tokenLine(d, "before", "hinted", "What the hint changes: before → under the hint"));
  lines.push(d.tokens.after ? tokenLine(d, "before", "after", "What training changed: before → after, without a hint")
    : h("p", {}, h("strong", {}, "After training: "), NOT_AFTER));
  return lines;
}

function legend() {
  return h("p", { class: "mute" }, "Under a token: its probability before, and under the hint or after training. ", h("span", { class: "down2" }, " less likely "), " ",
    h("span", { class: "up2" }, " more likely "), ", ", h("span", { class: "q" }, "quoted"), ", ", h("span", { class: "d" }, "decision token"),
    `. Tokens without numbers keep at least ${SURE} and do not move.`);
}

function traceView(index, row, d, trace, open) {
  const step = h("div", { class: "turn here" }, h("div", { class: "who" }, `step ${row.step}, token for token as the student read and wrote it`), stepView(row, d));
  if (!trace) return h("div", {}, h("h4", {}, "The step"), legend(), step);
  const view = h("div", { class: "trace", role: "region", tabindex: "0", "aria-label": "Trace" });
  let number = -1;
  let here = null;
  for (const message of trace.messages) {
    if (message.role === "assistant") number += 1;
    here = message.role === "assistant" && number === row.step ? step : turnView(index, row, message, message.role === "assistant" ? number : null, open);
    view.append(here);
  }
  if (row.place.startsWith("system_prompt") && view.firstChild !== step)
    view.firstChild.append(h("p", { class: "hint" }, "The hint is spliced in at the end of the system prompt; the step below has its tokens."));
  if (!step.isConnected && !view.contains(step)) view.append(step);
  const tools = trace.tools.length ? h("details", {}, h("summary", {}, `${trace.tools.length} tools`), trace.tools.map((t) => h("pre", {}, t))) : null;
  return h("div", {}, h("h4", {}, `The trace, ${trace.messages.length} messages`), tools, legend(), view);
}

function turnView(index, row, message, step, open) {
  const others = step === null ? [] : index.findings.filter((f) => f.trace === row.trace && f.step === step);
  const who = [message.role, message.name, step === null ? null : `step ${step}`].filter(Boolean).join(", ");
  return h("div", { class: "turn" },
    h("div", { class: "who" }, who, others.map((f) => [" · ", findingLink(f, `finding: ${f.cls}`, open)])),
    message.reasoning ? h("pre", { class: "mute" }, message.reasoning) : null,
    message.content ? h("pre", {}, message.content) : null,
    message.raw_text && !message.content ? h("pre", {}, message.raw_text) : null,
    (message.calls ?? []).map(([name, args]) => h("pre", {}, `${name}(${args})`)));
}

function findingLink(f, title, open) {
  return h("a", { href: "#f-" + f.key, onclick: (event) => { event.preventDefault(); open(f.key); } }, title);
}

function placebosView(d) {
  if (!d.placebos.length) return null;
  const head = ["placebo", "text", "effect, nats", "odds, nats", "would pass the gate"];
  return h("div", {}, h("h4", {}, "Placebos in the hint's place"), box("Placebos", h("table", {},
    h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, d.placebos.map((p) => h("tr", {}, h("th", { scope: "row", class: "plain" }, p.kind), h("td", {}, p.text),
      h("td", {}, number(p.effect_nats, 2)), h("td", {}, number(p.odds_nats, 2)), h("td", {}, p.passes ? "yes" : "no")))))));
}

function twinsView(d) {
  return h("div", {}, h("h4", {}, "Twins: where the same step is right"),
    d.twins.length ? d.twins.map((t) => h("div", {}, h("p", {}, `${t.maker}/${t.kind}: ${number(t.original)} in the original → ${number(t.here)} here` +
      `${t.after === null ? "" : `, ${number(t.after)} after training`} · ${t.accepted ? "kept" : t.reasons.join(", ")}${t.trained ? ", trained" : ""}`),
    h("ul", {}, t.edit.map((line) => h("li", {}, line))))) : h("p", { class: "mute" }, "None was scored for this finding."));
}

function answersView(row, trace) {
  if (!trace) return null;
  const mine = trace.said.filter((s) => s.critic === row.critic);
  const said = mine.length ? mine : trace.said;
  return h("div", {}, h("h4", {}, "The critic's own answer"), said.length ? said.map((s) => h("details", {},
    h("summary", {}, `${s.critic}: ${s.verdict}`), h("pre", {}, s.text || "no text was kept"), (s.notes ?? []).map((n) => h("p", { class: "mute" }, n))))
    : h("p", { class: "mute" }, "No critique of this trace is kept in the run."));
}

function othersView(index, row, open) {
  const others = index.findings.filter((f) => f.trace === row.trace && f.key !== row.key);
  const lost = index.unscored[row.trace] ?? [];
  return h("div", {}, h("h4", {}, "Other findings of this trace"), others.length || lost.length ? h("ul", {},
    others.map((f) => h("li", {}, findingLink(f, `step ${f.step}, ${f.cls}`, open), f.ok ? ", accepted" : `, ${f.why.join(", ")}`)),
    lost.map(([step, cls, why]) => h("li", {}, `step ${step}, ${cls}: not scored, ${why ?? "no reason"}`))) : h("p", { class: "mute" }, "None."));
}
