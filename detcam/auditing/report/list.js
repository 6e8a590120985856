// The list of cases: filters, order, and cards, of which only those near the window exist.

const CHUNK = 60, MAX_DRAWN = 120; // cards; CHUNK fills whole rows of one to six columns
const MAX_FILES_AT_ONCE = 10; // files of rows that one click loads
const FILTERS = ["type", "label", "verdict", "evidence_kind", "evidence_location", "background_type", "proposal", "group"];
const isUnlabeled = Boolean((data.settings || {}).unlabeled);
const NOUN = isUnlabeled ? "detection" : "error", NOUNS = NOUN + "s"; // without annotations no detection is called an error
const FIRST_ORDER = isUnlabeled ? "least trusted first" : "explained first";
const byAp = (a, b) => (b.delta_ap ?? 0) - (a.delta_ap ?? 0) || b.score - a.score;
const ORDERS = {
  [FIRST_ORDER]: (a, b) => !a.method - !b.method || (isUnlabeled && (a.trust ?? 1) - (b.trust ?? 1)) || b.score - a.score,
  "score": (a, b) => b.score - a.score,
  "confirmed effect": (a, b) => isConfirmed(b) - isConfirmed(a) || (b.effect ?? -1) - (a.effect ?? -1) || b.score - a.score,
  ...(hasAp ? {"delta AP": byAp} : {}),
  "type": (a, b) => TYPES.indexOf(a.type) - TYPES.indexOf(b.type) || byAp(a, b),
  "class": (a, b) => a.nameRank - b.nameRank || b.score - a.score,
  "verdict": (a, b) => VERDICTS.indexOf(a.verdict) - VERDICTS.indexOf(b.verdict) || byAp(a, b),
  "evidence location": (a, b) => rank(EVIDENCE_LOCATIONS, a.evidence_location) - rank(EVIDENCE_LOCATIONS, b.evidence_location) || byAp(a, b),
  "group": (a, b) => (a.group ?? Infinity) - (b.group ?? Infinity) || byAp(a, b),
  "file name": (a, b) => a.image.rank - b.image.rank || b.score - a.score,
};
const rank = (list, value) => (list.indexOf(value) < 0 ? list.length : list.indexOf(value));

const UNFILTERED = {type: "", label: "", verdict: "", evidence_kind: "", evidence_location: "", background_type: "", proposal: "", group: "", text: "", low: 0, high: 1, custom: null};
const state = {...UNFILTERED, order: FIRST_ORDER};
let shown = [], firstDrawn = 0, endDrawn = 0, current = null;
const controls = {};

function showList() {
  const classes = data.classes.map((item) => [String(item.label), item.name]);
  const choices = {
    type: [["", "all types"], ...TYPES.map((type) => [type, type])],
    label: [["", "all classes"], ...classes.sort((a, b) => collator.compare(a[1], b[1]))],
    verdict: [["", "all verdicts"], ["confirmed", "confirmed"], ...VERDICTS.map((verdict) => [verdict, VERDICT_TEXTS[verdict] || verdict])],
    proposal: [["", "all"], ...proposals().map((name) => [name, name]), ["none", "not explained"]],
    evidence_kind: [["", "all kinds"], ...[...new Set(data.causes.map((cause) => cause.kind))].map((kind) => [kind, kind]), ["none", "not explained"]],
    evidence_location: [["", "all locations"], ...EVIDENCE_LOCATIONS.map((location) => [location, LOCATION_TEXTS[location]]), ["none", "not explained"]],
    background_type: [["", "all"], ...BACKGROUND_TYPES.map((kind) => [kind, kind]), ["none", "none"]],
    group: [["", "all groups"], ...data.groups.map((group) => [String(group.number), (group.number + 1) + ": " + group.sentence]), ["none", "no group"]],
  };
  const titles = {type: "Type", label: "Class", verdict: "Verdict", evidence_kind: "Evidence kind", evidence_location: "Evidence location", background_type: "Background type", proposal: "Proposed by", group: "Group", order: "Sort by"};
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
    el("p", {class: "status"}, el("span", {id: "count", role: "status"}), el("span", {id: "custom"}),
      el("button", {type: "button", id: "clear", class: "quiet", click: () => filterBy({}, false)}, "Clear filters")),
    el("div", {id: "start"}),
    el("ol", {class: "cards", id: "list"}),
    el("div", {id: "end"}),
    el("p", {class: "status", id: "unlisted", hidden: true}, el("span", {id: "unlisted-count"}),
      el("button", {type: "button", id: "more", click: listMore}, "List them as well")));
  addEventListener("scroll", fillView, {passive: true});
  addEventListener("resize", fillView);
  if (!restoreFilters()) refresh();
}

// What proposed evidence, the most frequent in confirmed cases first.
function proposals() {
  const counts = data.tallies.proposal;
  return Object.keys(counts).sort((a, b) => counts[b] - counts[a] || collator.compare(a, b));
}

// The filters that are set, as a function of a case.
function matcher() {
  const text = state.text.trim().toLocaleLowerCase(), low = state.low - 1e-9, high = state.high + 1e-9;
  const tests = FILTERS.filter((name) => state[name] !== "").map((name) => {
    const value = state[name];
    if (value === "none") return (item) => !isKnown(item[name]);
    if (name === "verdict" && value === "confirmed") return isConfirmed;
    return (item) => String(item[name]) === value;
  });
  if (state.custom) tests.push(state.custom.test);
  return (item) => item.score >= low && item.score <= high && tests.every((test) => test(item)) && (!text || item.image.lower.includes(text));
}

function refresh() {
  shown = items.filter(matcher()).sort(ORDERS[state.order]);
  const filtered = shown.length < items.length;
  $("count").textContent = shown.length ? (filtered ? count(shown.length) + " of " : "") + plural(items.length, "case")
    : items.length ? "No case matches these filters." : unlisted() ? "No case is listed." : "No " + NOUNS + ".";
  $("clear").hidden = !filtered;
  $("custom").textContent = state.custom ? state.custom.name : "";
  showUnlisted();
  drawFrom(0);
  keepFilters();
}

// The filters and the order are in the address, so that a reload, a bookmark or a link shows the same cases.
const KEPT = [...FILTERS, "text", "low", "high", "order"];
function query() {
  const first = {...UNFILTERED, order: FIRST_ORDER};
  return new URLSearchParams(KEPT.filter((name) => state[name] !== first[name]).map((name) => [name, state[name]])).toString();
}

function keepFilters() {
  const kept = query();
  if ($("case").hidden && requestedId() === null && (kept || location.hash.startsWith("#cases?"))) history.replaceState(null, "", "#" + (kept && "cases?" + kept));
}

function restoreFilters() {
  const match = /^#cases\?(.*)$/.exec(location.hash);
  if (!match || match[1] === query()) return false;
  const found = Object.fromEntries([...new URLSearchParams(match[1])].filter(([name]) => KEPT.includes(name)));
  for (const name of ["low", "high"]) if (name in found) found[name] = isFinite(found[name] || NaN) ? Number(found[name]) : UNFILTERED[name];
  filterBy({...found, order: Object.hasOwn(ORDERS, found.order) ? found.order : FIRST_ORDER}, false);
  return true;
}

// The errors that the page has not loaded: those below the threshold, and the lowest scores of very large audits.
function showUnlisted() {
  const rest = unlisted(), next = countRows(loadedFiles, loadedFiles + MAX_FILES_AT_ONCE);
  $("unlisted").hidden = !rest;
  if (!rest) return;
  const isLow = items.length >= start.listed;
  $("unlisted-count").textContent = plural(rest, NOUN) + (isLow ? " with a score below " + threshold : " with lower scores") + (rest === 1 ? " is" : " are") + " not listed.";
  $("more").textContent = next < rest ? "List " + count(next) + " of them" : rest === 1 ? "List it as well" : "List them as well";
}

async function listMore() {
  $("more").disabled = true;
  try {
    await loadRows(Math.min(loadedFiles + MAX_FILES_AT_ONCE, start.rows.length));
  } catch (error) {
    showError(error);
  }
  $("more").disabled = false;
  refresh();
}

function drawFrom(index) {
  firstDrawn = endDrawn = index - index % CHUNK;
  [...$("list").children].forEach(recycle);
  drawBelow();
  fillView();
}

// Cards that leave the list are used again for those that come, and the layout is computed once for both.
function drawBelow() {
  const list = $("list"), end = Math.min(endDrawn + CHUNK, shown.length);
  const append = () => list.append(...shown.slice(endDrawn, end).map((item, index) => cardOf(item, endDrawn + index, shown.length)));
  if (end - firstDrawn > MAX_DRAWN) {
    inPlace(CHUNK, () => {
      for (const node of [...list.children].slice(0, CHUNK)) recycle(node);
      append();
    });
    firstDrawn += CHUNK;
  } else append();
  endDrawn = end;
}

function drawAbove() {
  const list = $("list"), first = firstDrawn - CHUNK;
  inPlace(0, () => {
    while (list.children.length > MAX_DRAWN - CHUNK) recycle(list.lastChild);
    list.prepend(...shown.slice(first, firstDrawn).map((item, index) => cardOf(item, first + index, shown.length)));
  });
  firstDrawn = first;
  endDrawn = Math.min(endDrawn, firstDrawn + MAX_DRAWN);
}

// Changes the list so that the first visible card, among those from an index on, stays where it is in the window.
function inPlace(from, change) {
  const cards = [...$("list").children].slice(from);
  const node = cards.find((card) => card.getBoundingClientRect().bottom > 0) || cards[0];
  const before = node.getBoundingClientRect().top;
  change();
  scrollBy(0, node.getBoundingClientRect().top - before);
}

// Draws cards until the ends of the drawn part are out of view.
let isFilling = false;
function fillView() {
  if (isFilling) return;
  isFilling = true;
  requestAnimationFrame(() => {
    isFilling = false;
    if ($("overview").hidden) return;
    if (endDrawn < shown.length && $("end").getBoundingClientRect().top < innerHeight + 800) drawBelow();
    else if (firstDrawn > 0 && $("start").getBoundingClientRect().bottom > -800) drawAbove();
    else return;
    fillView();
  });
}

function filterBy(filter, scroll = true) {
  Object.assign(state, UNFILTERED, filter);
  for (const name of FILTERS) {
    const value = state[name];
    if (![...controls[name].options].some((option) => option.value === value)) controls[name].append(el("option", {value}, name === "group" ? groupText(Number(value)) : value));
  }
  for (const name of [...FILTERS, "text", "low", "high", "order"]) controls[name].value = state[name];
  refresh();
  if (scroll) {
    $("cases").scrollIntoView({block: "start"});
    $("cases").focus({preventScroll: true});
  }
}

function groupText(number) {
  const group = data.groups.find((each) => each.number === number);
  return group ? group.sentence : "group " + (number + 1);
}

// Index of a case in the filtered list, or -1.
const position = (item) => shown.indexOf(item);

function focusCard(item) {
  const index = position(item);
  if (index < 0) return;
  const isDrawn = index >= firstDrawn && index < endDrawn;
  if (!isDrawn) {
    drawFrom(Math.max(index - CHUNK, 0));
    while (index >= endDrawn) drawBelow();
  }
  const node = $("list").children[index - firstDrawn].firstChild;
  node.focus({preventScroll: true});
  node.scrollIntoView({block: isDrawn ? "nearest" : "center"});
  if (!isDrawn) keepInView(node);
  fillView();
}

// Cards get their heights as they come near the window; until then, and unless the user scrolls, a focused card moves.
const SETTLING_FRAMES = 30;
function keepInView(node, frames = SETTLING_FRAMES) {
  const stop = () => { frames = 0; };
  const inputs = ["wheel", "touchmove", "keydown", "pointerdown"];
  for (const input of inputs) addEventListener(input, stop, {passive: true});
  const check = () => {
    const box = node.getBoundingClientRect();
    if (frames > 0 && node.isConnected && (box.top < 0 || box.bottom > innerHeight)) node.scrollIntoView({block: "center"});
    if (--frames > 0) requestAnimationFrame(check);
    else for (const input of inputs) removeEventListener(input, stop);
  };
  requestAnimationFrame(check);
}
