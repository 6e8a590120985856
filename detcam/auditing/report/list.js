// The list of cases: filters, order, and cards that are made only when they come into sight.

const CHUNK = 60;
const FILTERS = ["type", "label", "verdict", "evidence_location", "background_type", "group"];
const ORDERS = {
  "AP lost": (a, b) => b.delta_ap - a.delta_ap || b.score - a.score,
  "score": (a, b) => b.score - a.score,
  "type": (a, b) => TYPES.indexOf(a.type) - TYPES.indexOf(b.type) || b.delta_ap - a.delta_ap,
  "class": (a, b) => a.name.localeCompare(b.name) || b.score - a.score,
  "verdict": (a, b) => VERDICTS.indexOf(a.verdict) - VERDICTS.indexOf(b.verdict) || b.delta_ap - a.delta_ap,
  "place of evidence": (a, b) => rank(EVIDENCE_LOCATIONS, a.evidence_location) - rank(EVIDENCE_LOCATIONS, b.evidence_location) || b.delta_ap - a.delta_ap,
  "group": (a, b) => (a.group ?? Infinity) - (b.group ?? Infinity) || b.delta_ap - a.delta_ap,
  "file name": (a, b) => a.file_name.localeCompare(b.file_name) || b.score - a.score,
};
const rank = (list, value) => (list.indexOf(value) < 0 ? list.length : list.indexOf(value));

const byId = new Map(data.cases.map((one) => [one.id, one]));
const state = {type: "", label: "", verdict: "", evidence_location: "", background_type: "", group: "", text: "", low: 0, high: 1, order: "AP lost"};
let shown = [], drawn = 0, current = null;
const controls = {};

function showList() {
  const names = new Map(data.cases.map((one) => [String(one.label), one.name]));
  const choices = {
    type: [["", "all types"], ...TYPES.map((type) => [type, type])],
    label: [["", "all classes"], ...[...names].sort((a, b) => a[1].localeCompare(b[1]))],
    verdict: [["", "all verdicts"], ...VERDICTS.map((verdict) => [verdict, verdict])],
    evidence_location: [["", "anywhere"], ...EVIDENCE_LOCATIONS.map((place) => [place, LOCATION_WORDS[place]]), ["none", "not explained"]],
    background_type: [["", "all"], ...BACKGROUND_TYPES.map((kind) => [kind, BACKGROUND_WORDS[kind]]), ["none", "not told"]],
    group: [["", "all groups"], ...(data.groups || []).map((group) => [String(group.number), (group.number + 1) + ": " + group.sentence]), ["none", "in no group"]],
  };
  const titles = {type: "Type", label: "Class", verdict: "Verdict", evidence_location: "Evidence", background_type: "Background", group: "Group", order: "Sort by"};
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
        el("span", {class: "bounds"}, bound("low", "lowest score"), NONE, bound("high", "highest score"))),
      select("order", Object.keys(ORDERS).map((name) => [name, name]))),
    el("p", {class: "status"}, el("span", {id: "count", role: "status"}),
      el("button", {type: "button", id: "clear", class: "quiet", click: () => filterBy({}, false)}, "Clear filters")),
    el("ol", {class: "cards", id: "list"}),
    el("div", {id: "end"}));
  new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && drawMore(), {rootMargin: "800px"}).observe($("end"));
  refresh();
}

function matches(one) {
  const text = state.text.trim().toLocaleLowerCase();
  return FILTERS.every((name) => state[name] === "" || (state[name] === "none" ? !known(one[name]) : String(one[name]) === state[name]))
    && one.score >= state.low - 1e-9 && one.score <= state.high + 1e-9
    && (!text || one.file_name.toLocaleLowerCase().includes(text));
}

function refresh() {
  shown = data.cases.filter(matches).sort(ORDERS[state.order]);
  drawn = 0;
  $("list").replaceChildren();
  const narrowed = shown.length < data.cases.length;
  $("count").textContent = shown.length ? (narrowed ? count(shown.length) + " of " : "") + plural(data.cases.length, "case")
    : data.cases.length ? "No case fits these filters." : "No errors were found.";
  $("clear").hidden = !narrowed;
  drawMore();
}

// Chunks follow each other until the list's end is out of sight again.
function drawMore(least = 0) {
  do {
    $("list").append(...shown.slice(drawn, drawn + CHUNK).map(cardOf));
    drawn = Math.min(drawn + CHUNK, shown.length);
  } while (drawn < Math.min(least, shown.length));
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

function thumbnail(one) {
  const source = link(one.files.thumbnail) || link(one.files.image);
  if (!source) return el("span", {class: "thumbnail none"}, "no image");
  return el("img", {class: "thumbnail", src: source, alt: "", loading: "lazy", decoding: "async", width: 320, height: 240});
}

function cardOf(one) {
  return el("li", {}, el("a", {class: "case-card", href: caseLink(one.id), "data-id": one.id},
    thumbnail(one),
    el("span", {class: "case-text"},
      el("span", {class: "case-name"}, el("b", {}, one.name), el("span", {class: "number"}, score(one.score))),
      el("span", {class: "facts"}, tag(one.type), one.method && tag(one.verdict), one.background_type && tag(one.background_type)),
      el("span", {class: "reading"}, one.sentence || TYPE_WORDS[one.type]),
      el("span", {class: "file"}, one.file_name))));
}

// Where a case stands among those shown; -1 where the filters leave it out.
const position = (one) => shown.indexOf(one);

function focusCard(one) {
  const at = position(one);
  if (at < 0) return;
  drawMore(at + 1);
  const node = $("list").children[at].firstChild;
  node.focus({preventScroll: true});
  node.scrollIntoView({block: "nearest"});
}
