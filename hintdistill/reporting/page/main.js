// Puts the page's parts together: the tools above the list, the list, the finding that is open, keys and permalinks.
async function start() {
  const index = await island("index");
  const state = { rows: [], at: -1, sort: "error left", filters: Object.fromEntries(Object.keys(FILTERS).map((name) => [name, null])), hits: null, words: "" };
  const rows = h("div", { class: "rows", role: "presentation" });
  const list = h("div", { class: "list", role: "listbox", tabindex: "0", id: "list", "aria-label": "Findings" }, rows);
  const detail = h("article", { class: "detail", tabindex: "-1", "aria-label": "The finding" },
    h("p", { class: "mute" }, "Choose a finding. Keys: j and k or the arrows move, Enter reads it, Esc goes back, / searches."));
  const status = h("span", { role: "status", class: "mute" });
  let opened = null;
  let asked = 0;

  function draw() {
    rows.style.height = state.rows.length * ROW + "px";
    const first = Math.max(0, Math.floor(list.scrollTop / ROW) - SPARE);
    const last = Math.min(state.rows.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + SPARE);
    rows.replaceChildren(...state.rows.slice(first, last).map((f, i) => {
      const row = rowView(index, f, first + i, state.rows.length, first + i === state.at);
      row.style.top = (first + i) * ROW + "px";
      return row;
    }));
    if (state.at >= first && state.at < last) list.setAttribute("aria-activedescendant", "row-" + state.rows[state.at].key);
    else list.removeAttribute("aria-activedescendant");
  }

  function refresh() {
    state.rows = chosen(index.findings, state.filters, state.sort, state.hits);
    state.at = state.rows.findIndex((f) => f.key === opened);
    const all = index.findings.length;
    status.textContent = state.rows.length === all ? `${all} findings` : `${state.rows.length} of ${all} findings`;
    list.scrollTop = state.at < 0 ? 0 : Math.max(0, state.at * ROW - list.clientHeight / 2);
    draw();
  }

  // Move to a row, bring it into sight, and show its finding.
  async function go(at) {
    if (!state.rows.length) return;
    state.at = Math.max(0, Math.min(state.rows.length - 1, at));
    const top = state.at * ROW;
    if (top < list.scrollTop) list.scrollTop = top;
    if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    draw();
    await show(state.rows[state.at]);
  }

  async function show(row) {
    opened = row.key;
    history.replaceState(null, "", "#f-" + row.key);
    const parts = await findingView(index, row, openKey);
    if (opened !== row.key) return;
    detail.replaceChildren(...parts);
    const trace = detail.querySelector(".trace");
    if (trace) trace.scrollTop = trace.querySelector(".here").offsetTop - 40;
  }

  // Open a finding by its key, also one that the filters hide: they are taken back.
  async function openKey(key) {
    if (!index.findings.some((f) => f.key === key)) {
      detail.replaceChildren(h("p", {}, `Finding ${key} is not in this page: report.json and “hintdistill show RUN ${key}” have it.`));
      return;
    }
    if (!state.rows.some((f) => f.key === key)) reset();
    await go(state.rows.findIndex((f) => f.key === key));
  }

  async function look(words) {
    state.words = words;
    const turn = ++asked;
    if (words) status.textContent = "searching …";
    const hits = words ? await search(index, words, () => turn === asked) : null;
    if (turn !== asked) return;
    state.hits = hits;
    refresh();
  }

  const field = h("input", { type: "search", id: "search", oninput: () => { clearTimeout(field.timer); field.timer = setTimeout(() => look(field.value.trim()), 200); } });
  const pick = (title, options, change) => {
    const select = h("select", { onchange: () => change(select.value), "data-name": title }, options.map(([value, name]) => h("option", { value }, name)));
    return h("label", {}, title, select);
  };
  const sorts = pick("sort by", Object.keys(SORTS).map((name) => [name, name === "error left" ? "probability of the error left" : name]), (value) => { state.sort = value; refresh(); });
  // a value stands in the list with its number, so that an empty one can be chosen too
  const filters = Object.keys(FILTERS).map((name) => {
    const found = choices(index.findings, name);
    const options = [["", "any"], ...found.map(([value, n], i) => [String(i), `${value === "" ? "(none)" : value} (${n})`])];
    return pick(name, options, (value) => { state.filters[name] = value === "" ? null : found[Number(value)][0]; refresh(); });
  });

  function reset() {
    asked += 1;
    field.value = state.words = "";
    state.hits = null;
    for (const name of Object.keys(state.filters)) state.filters[name] = null;
    for (const label of filters) label.querySelector("select").value = "";
    refresh();
  }

  const searching = h("label", { class: "wide" }, "search in all text", field);
  const tools = h("div", { class: "tools", role: "search", "aria-label": "Choose findings" }, searching, sorts, ...filters, h("button", { type: "button", onclick: reset }, "Reset"), status);
  const app = document.getElementById("app");
  app.append(tools, h("div", { class: "panes" }, list, detail));
  app.hidden = false;
  document.documentElement.classList.add("js");

  list.addEventListener("scroll", () => requestAnimationFrame(draw));
  window.addEventListener("resize", draw);
  rows.addEventListener("click", (event) => {
    const row = event.target.closest(".line");
    if (row) go(Number(row.dataset.at));
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const typing = event.target.closest("input, select, textarea");
    const inList = event.target === list;
    const step = { j: 1, k: -1, ...(inList ? { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8, Home: -Infinity, End: Infinity } : {}) }[event.key];
    if (event.key === "Escape") {
      if (event.target === field && field.value) { field.value = ""; look(""); }
      else list.focus();
    } else if (typing) {
      return;
    } else if (event.key === "/") {
      field.focus();
    } else if (step !== undefined) {
      go(state.at + step);
    } else if (event.key === "Enter" && inList) {
      (state.at < 0 ? go(0) : Promise.resolve()).then(() => { detail.focus(); detail.scrollIntoView({ block: "nearest" }); });
    } else {
      return;
    }
    event.preventDefault();
  });
  const follow = async () => {
    const key = location.hash.startsWith("#f-") ? decodeURIComponent(location.hash.slice(3)) : null;
    if (!key) return;
    await openKey(key);
    app.scrollIntoView();
  };
  window.addEventListener("hashchange", follow);
  refresh();
  await follow();
}

// Without what it needs (an old browser) the page stays as it is without scripts.
if (typeof DecompressionStream === "function") start();
