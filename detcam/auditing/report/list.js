// The list of cases: filters, order, and cards that are created when they scroll into view.

const CHUNK = 60;
const FILTERS = ["type", "label", "verdict", "evidence_location", "background_type", "proposal", "group"];
const FIRST_ORDER = "explained first";
const byAp = (a, b) => (b.delta_ap ?? 0) - (a.delta_ap ?? 0) || b.score - a.score;
const ORDERS = {
  [FIRST_ORDER]: (a, b) => !a.method - !b.method || b.score - a.score,
  "score": (a, b) => b.score - a.score,
  "confirmed effect": (a, b) => isConfirmed(b) - isConfirmed(a) || (b.effect ?? -1) - (a.effect ?? -1) || b.score - a.score,
  ...(hasAp ? {"delta AP": byAp} : {}),
  "type": (a, b) => TYPES.indexOf(a.type) - TYPES.indexOf(b.type) || byAp(a, b),
  "class": (a, b) => a.name.localeCompare(b.name) || b.score - a.score,
  "verdict": (a, b) => VERDICTS.indexOf(a.verdict) - VERDICTS.indexOf(b.verdict) || byAp(a, b),
  "evidence location": (a, b) => rank(EVIDENCE_LOCATIONS, a.evidence_location) - rank(EVIDENCE_LOCATIONS, b.evidence_location) || byAp(a, b),
  "group": (a, b) => (a.group ?? Infinity) - (b.group ?? Infinity) || byAp(a, b),
  "file name": (a, b) => a.file_name.localeCompare(b.file_name) || b.score - a.score,
};
const rank = (list, value) => (list.indexOf(value) < 0 ? list.length : list.indexOf(value));

const byId = new Map(data.cases.map((item) => [item.id, item]));
const state = {type: "", label: "", verdict: "", evidence_location: "", background_type: "", proposal: "", group: "", text: "", low: 0, high: 1, order: FIRST_ORDER};
let shown = [], drawn = 0, current = null;
const controls = {};

function showList() {
  const names = new Map(data.cases.map((item) => [String(item.label), item.name]));
  const choices = {
    type: [["", "all types"], ...TYPES.map((type) => [type, type])],
    label: [["", "all classes"], ...[...names].sort((a, b) => a[1].localeCompare(b[1]))],
    verdict: [["", "all verdicts"], ["confirmed", "confirmed"], ...VERDICTS.map((verdict) => [verdict, VERDICT_TEXTS[verdict] || verdict])],
    proposal: [["", "all"], ...proposals().map((name) => [name, name]), ["none", "not explained"]],
    evidence_location: [["", "all locations"], ...EVIDENCE_LOCATIONS.map((location) => [location, LOCATION_TEXTS[location]]), ["none", "not explained"]],
    background_type: [["", "all"], ...BACKGROUND_TYPES.map((kind) => [kind, kind]), ["none", "none"]],
    group: [["", "all groups"], ...(data.groups || []).map((group) => [String(group.number), (group.number + 1) + ": " + group.sentence]), ["none", "no group"]],
  };
  const titles = {type: "Type", label: "Class", verdict: "Verdict", evidence_location: "Evidence location", background_type: "Background type", proposal: "Proposed by", group: "Group", order: "Sort by"};
  const select = (name, options) => {
    controls[name] = el("select", {id: "by-" + name, change: (event) => { state[name] = event.target.value; refresh(); }},
      options.map(([value, text]) => el("option", {value}, text)));
    return el("label", {}, el("span", {}, titles[name]), controls[name]);
  };
  const bound = (name, title) => {
    controls[name] = el("input", {id: "by-" + name, type: "number", min: 0, max: 1, step: 0.05, value: state[name], "aria-label": title,
      input: (event) => { state[name] = event.target.value === "" ? (name === "low" ? 0 : 1) : Number(event.target.value); refresh(); }});
    return controls[name];
  };
  controls.text = el("input", {id: "by-text", type: "search", placeholder: "search", "aria-keyshortcuts": "/",
    autocomplete: "off", spellcheck: "false", input: (event) => { state.text = event.target.value; refresh(); }});
  $("cases").append(
    el("h2", {id: "cases-title"}, "Cases"),
    el("form", {class: "filters", role: "search", submit: (event) => event.preventDefault()},
      el("label", {class: "search"}, el("span", {}, "File name"), controls.text),
      FILTERS.map((name) => select(name, choices[name])),
      el("div", {class: "range", role: "group", "aria-label": "Score"}, el("span", {}, "Score"),
        el("span", {class: "bounds"}, bound("low", "minimum score"), NONE, bound("high", "maximum score"))),
      select("order", Object.keys(ORDERS).map((name) => [name, name]))),
    el("p", {class: "status"}, el("span", {id: "count", role: "status"}),
      el("button", {type: "button", id: "clear", class: "quiet", click: () => filterBy({}, false)}, "Clear filters")),
    el("ol", {class: "cards", id: "list"}),
    el("div", {id: "end"}));
  new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && drawMore(), {rootMargin: "800px"}).observe($("end"));
  refresh();
}

// What proposed evidence, the most frequent in confirmed cases first.
function proposals() {
  const counts = new Map();
  for (const item of data.cases) if (item.proposal) counts.set(item.proposal, (counts.get(item.proposal) || 0) + (isConfirmed(item) ? 1 : 0));
  return [...counts.keys()].sort((a, b) => counts.get(b) - counts.get(a) || a.localeCompare(b));
}

function matches(item) {
  const text = state.text.trim().toLocaleLowerCase();
  const fits = (name) => (state[name] === "none" ? !isKnown(item[name])
    : name === "verdict" && state[name] === "confirmed" ? isConfirmed(item) : String(item[name]) === state[name]);
  return FILTERS.every((name) => state[name] === "" || fits(name))
    && item.score >= state.low - 1e-9 && item.score <= state.high + 1e-9
    && (!text || item.file_name.toLocaleLowerCase().includes(text));
}

function refresh() {
  shown = data.cases.filter(matches).sort(ORDERS[state.order]);
  drawn = 0;
  $("list").replaceChildren();
  const filtered = shown.length < data.cases.length;
  $("count").textContent = shown.length ? (filtered ? count(shown.length) + " of " : "") + plural(data.cases.length, "case")
    : data.cases.length ? "No case matches these filters." : "No errors.";
  $("clear").hidden = !filtered;
  drawMore();
}

// Appends chunks until the end of the list is out of view.
function drawMore(min = 0) {
  do {
    $("list").append(...shown.slice(drawn, drawn + CHUNK).map(cardOf));
    drawn = Math.min(drawn + CHUNK, shown.length);
  } while (drawn < Math.min(min, shown.length));
  if (drawn < shown.length) requestAnimationFrame(() => {
    if (!$("overview").hidden && $("end").getBoundingClientRect().top < innerHeight + 800) drawMore();
  });
}

function filterBy(filter, scroll = true) {
  Object.assign(state, {type: "", label: "", verdict: "", evidence_location: "", background_type: "", group: "", text: "", low: 0, high: 1}, filter);
  for (const name of [...FILTERS, "text", "low", "high"]) controls[name].value = state[name];
  refresh();
  if (scroll) {
    $("cases").scrollIntoView({block: "start"});
    $("cases").focus({preventScroll: true});
  }
}

function thumbnail(item) {
  const source = link(item.files.thumbnail) || link(item.files.image);
  if (!source) return el("span", {class: "thumbnail none"}, "no image");
  return el("img", {class: "thumbnail", src: source, alt: "", loading: "lazy", decoding: "async", width: 320, height: 240});
}

function cardOf(item) {
  return el("li", {}, el("a", {class: "case-card", href: caseLink(item.id), "data-id": item.id},
    thumbnail(item),
    el("span", {class: "case-text"},
      el("span", {class: "case-name"}, el("b", {}, item.name), el("span", {class: "number"}, score(item.score))),
      el("span", {class: "facts"}, tag(item.type), item.method && tag(item.verdict), item.background_type && tag(item.background_type)),
      el("span", {class: "sentence"}, item.sentence || TYPE_TEXTS[item.type]),
      el("span", {class: "file"}, item.file_name))));
}

// Index of a case in the filtered list, or -1.
const position = (item) => shown.indexOf(item);

function focusCard(item) {
  const index = position(item);
  if (index < 0) return;
  drawMore(index + 1);
  const node = $("list").children[index].firstChild;
  node.focus({preventScroll: true});
  node.scrollIntoView({block: "nearest"});
}
