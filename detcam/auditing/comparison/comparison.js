// The comparison of two audits.

const data = JSON.parse(document.getElementById("data").textContent);
const PAGE = 60;

const signed = (value, count) => (isKnown(value) ? (value > 0 ? "+" : "") + digits(value, count) : NONE);
const tag = (kind, text) => el("span", {class: "tag " + kebab(kind)}, text || kind);
// A change of a number, and below it the interval of the change; the interval of nothing is left out.
function change(old, now, interval, count) {
  const isEmpty = !isKnown(interval[0]) || (interval[0] === 0 && interval[1] === 0);
  return el("td", {class: "number"}, digits(old, count) + " \u2192 " + digits(now, count),
    !isEmpty && el("div", {class: "interval"}, signed(interval[0], count) + " to " + signed(interval[1], count)));
}
function table(name, heads, rows) {
  const head = heads.map(([text, isNumber]) => el("th", {scope: "col", class: isNumber ? "number" : null}, text));
  return scrollable(name, el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows)));
}

function overview() {
  $("subject").textContent = data.old_model + " \u2192 " + data.new_model;
  $("headline").append(el("h1", {}, data.headline[0]), el("p", {class: "lead"}, data.headline.slice(1).join(" ")));
  const figures = [["images", data.image_count], ["old AP", digits(data.old_average_precision, 3)], ["new AP", digits(data.new_average_precision, 3)],
    ["fixed", data.counts.fixed], ["new errors", data.counts.new], ["unchanged", data.counts.unchanged]];
  $("figures").append(el("dl", {class: "figures"}, figures.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))));
  const NUMBERS = [["errors", true], ["delta AP", true]];
  const cost = (item) => change(item.old_delta_ap, item.new_delta_ap, item.delta_ap_interval, 3);
  const isUndefined = (item) => !isKnown(item.old_delta_ap) || !isKnown(item.new_delta_ap);
  const without = (items) => (isKnown(data.old_average_precision) && items.some(isUndefined) ? " No delta AP (" + NONE + "): the classes of the errors have no objects, or no objects are left without the missed ones." : "");
  $("causes").append(el("h2", {}, "Causes of the explained errors"),
    el("p", {class: "note"}, "Old \u2192 new, and the 95\u202f% interval of the change. A cause is new, gone, grown or shrunk if an exact test over images finds its number of errors changed, corrected for the number of causes. Choose a cause to see its errors." + without(data.causes)),
    table("Causes", [["cause"], ["status"], ...NUMBERS], data.causes.map((cause, index) => el("tr", {},
      el("th", {scope: "row"}, el("button", {type: "button", class: "text", click: () => choose({cause: index})}, cause.name)), el("td", {}, tag(cause.status)),
      change(cause.old_count, cause.new_count, cause.difference_interval, 0), cost(cause)))));
  $("types").append(el("h2", {}, "Error types"), el("p", {class: "note"}, "Numbers of missed objects, and of false positives from the score threshold on. Delta AP is the increase of average precision if all errors of a type are corrected, those with low scores too: a wrong class or box is set right, other false positives are removed." + without(data.types)),
    table("Error types", [["type"], ...NUMBERS], data.types.map((type) => el("tr", {},
      el("th", {scope: "row"}, tag(type.type)), change(type.old_count, type.new_count, [null, null], 0), cost(type)))));
  choose({change: ["new", "fixed"].find((change) => data.counts[change]) || "unchanged"}, false);
}

// The list of errors: those with a change, or of a cause.
let shown = [], limit = PAGE;
function choose(filter, scroll = true) {
  const cause = isKnown(filter.cause) ? data.causes[filter.cause] : null;
  const has = (ids, id) => id && ids.includes(id);
  shown = data.errors.map((pair, index) => ({...pair, index})).filter((pair) => pair.old || pair.new)
    .filter((pair) => (cause ? has(cause.old_ids, pair.old_id) || has(cause.new_ids, pair.new_id) : pair.change === filter.change));
  limit = PAGE;
  const all = cause ? shown.length : data.counts[filter.change];
  const buttons = ["new", "fixed", "unchanged"].map((change) => el("button", {type: "button", "aria-pressed": String(filter.change === change), click: () => choose({change})},
    change + " (" + data.counts[change] + ")"));
  $("errors").replaceChildren(el("h2", {}, cause ? cause.name : "Errors"), el("div", {class: "pair-filters"}, buttons),
    el("p", {class: "note"}, shown.length + " of " + all + " with an explanation in one of the audits"), el("ol", {class: "cards", id: "cards"}));
  more();
  if (scroll) $("errors").scrollIntoView();
}
function more() {
  $("cards").replaceChildren(...shown.slice(0, limit).map(card));
  if (limit < shown.length) $("cards").append(el("li", {}, el("button", {type: "button", click: () => { limit += PAGE; more(); }}, "Show more")));
}
function card(pair) {
  const side = (entry) => entry && entry.thumbnail ? el("img", {class: "thumbnail", loading: "lazy", alt: "", src: link(entry.thumbnail)}) : el("span", {class: "thumbnail none"}, entry ? "not explained" : "no error");
  return el("li", {}, el("a", {class: "case-card", href: "#pair=" + pair.index, "data-index": pair.index}, el("div", {class: "sides"}, side(pair.old), side(pair.new)),
    el("div", {class: "case-text"}, el("div", {class: "case-name"}, el("b", {}, pair.name), el("span", {class: "number"}, digits(pair.old_score, 2) + " \u2192 " + digits(pair.new_score, 2))),
      el("div", {class: "facts"}, tag(pair.change), tag(pair.type)), el("div", {class: "file"}, pair.file_name))));
}

// Both audits of an error side by side.
const canvases = {old: {image: imageCanvas(), heat: imageCanvas()}, new: {image: imageCanvas(), heat: imageCanvas()}};
function view(title, pair, side) {
  const entry = pair[side], {image, heat} = canvases[side], [height, width] = pair.image_size_hw;
  const [left, top, right, bottom] = (entry && entry.box_xyxy) || pair.box_xyxy;
  const bounds = {x: left, y: top, width: Math.max(right - left, 0), height: Math.max(bottom - top, 0)};
  const node = svg("svg", {class: "viewer-image", role: "img", "aria-label": title, preserveAspectRatio: "none", viewBox: [0, 0, width, height].join(" ")},
    entry && entry.outline && [svg("path", {d: entry.outline, class: "casing"}), svg("path", {d: entry.outline, class: "line evidence"})],
    svg("rect", {...bounds, class: "casing"}), svg("rect", {...bounds, class: "line " + (entry ? "predicted" : "absent")}));
  showImage(image, link(pair.image));
  showImage(heat, entry && link(entry.overlay));
  heat.style.opacity = data.heat.opacity;
  const frame = el("div", {class: "viewer-frame"}, image, heat, node);
  frame.style.aspectRatio = width + " / " + height;
  frame.style.setProperty("--ratio", width / height);
  return el("section", {class: "view"}, el("h2", {}, title), frame,
    el("p", {}, entry ? [entry.verdict !== "not tested" && tag(entry.verdict), " ", entry.sentence] : "No such error."), entry && entry.below && el("p", {class: "note"}, "Below the score threshold, and so not an error that counts."));
}
function showPair(index) {
  const pair = data.errors[index], at = shown.findIndex((each) => each.index === index);
  const step = (by, text) => el("a", {class: "button" + (shown[at + by] && at >= 0 ? "" : " off"), href: at >= 0 && shown[at + by] ? "#pair=" + shown[at + by].index : null}, text);
  $("pair").replaceChildren(
    el("nav", {class: "steps", "aria-label": "Errors"}, el("a", {class: "button", href: "#"}, "\u2190 Comparison"), el("span", {class: "of"}, at < 0 ? "" : at + 1 + " of " + shown.length), step(-1, "Previous"), step(1, "Next")),
    el("div", {class: "case-head"}, el("h1", {}, pair.name, " ", el("span", {class: "number"}, digits(pair.old_score, 3) + " \u2192 " + digits(pair.new_score, 3))),
      el("p", {class: "facts"}, tag(pair.change), tag(pair.type), el("span", {class: "file"}, pair.file_name))),
    el("div", {class: "views"}, view("Old: " + data.old_model, pair, "old"), view("New: " + data.new_model, pair, "new")));
}

function route() {
  const match = /^#pair=(\d+)$/.exec(location.hash), index = match ? Number(match[1]) : -1;
  const isPair = Boolean(data.errors[index]);
  if (isPair) showPair(index);
  else for (const {image, heat} of Object.values(canvases)) [image, heat].forEach(releaseImage);
  $("pair").hidden = !isPair;
  $("overview").hidden = isPair;
  scrollTo(0, 0);
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") location.hash = "";
  const by = {j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1}[event.key];
  const match = /^#pair=(\d+)$/.exec(location.hash), at = match ? shown.findIndex((each) => each.index === Number(match[1])) : -1;
  if (by && at >= 0 && shown[at + by]) location.hash = "#pair=" + shown[at + by].index;
});
if (matchMedia("(prefers-color-scheme: dark)").matches) document.documentElement.dataset.theme = "dark";
overview();
addEventListener("hashchange", route);
route();
