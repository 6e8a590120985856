// Content above the list of cases (headline, key figures, charts, groups) and below it (data issues, settings).

const MAX_CLASSES = 12, MAX_GROUPS = 8;

function showOverview() {
  showDecision();
  showFigures();
  $("charts").append(...[!isUnlabeled && typeChart(), classChart(), evidenceChart(), curvesCard()].filter(Boolean));
  showCauses();
  $("tables").append(...[confusionCard()].filter(Boolean));
  showGroups();
  showAbout();
}

function showFigures() {
  const {false_positives: alarms, missed, explained, confirmed, strong} = data.figures;
  const figures = [
    ...(hasAp ? [["AP at IoU " + digits(data.iou_threshold, 2), digits(data.average_precision, 3), "COCO average precision, mean over classes"]] : []),
    ["images", count(data.image_count)],
    ...(isUnlabeled ? [] : [["objects", count(data.object_count)]]),
    [(isUnlabeled ? "detections" : "false positives") + (threshold ? ", score \u2265 " + threshold : ""), count(alarms), count(data.false_positive_count) + " with any score"],
    ...(isUnlabeled ? [] : [["missed objects", count(missed)]]),
    ["explained", count(explained), NOUNS + " with an explanation"],
    ["confirmed", count(confirmed), "the " + (isUnlabeled ? "detection vanishes, moves or changes its class" : "error ends") + " without the evidence, with every fill, and control regions of the same size cost much less"],
    ["strongly", count(strong), "confirmed strongly: a large effect, small evidence, and controls inside the box as well"],
  ];
  $("figures").append(el("dl", {class: "figures"}, figures.map(([name, value, title]) =>
    el("div", {title}, el("dt", {}, name), el("dd", {}, value)))));
}

// A chart row that filters the list on click.
function chartRow(filter, name, ...cells) {
  const button = el("button", {type: "button", class: "row-name", title: [name].flat().at(-1), click: () => filterBy(filter)}, name);
  return el("tr", {}, el("th", {scope: "row"}, button), cells);
}

function card(title, note, ...content) {
  return el("div", {class: "card"}, el("h2", {}, title), note && el("p", {class: "note"}, note), content);
}

function typeChart() {
  const size = (item) => (hasAp ? item.delta_ap : item.count) || 0;
  const max = Math.max(...data.types.map(size));
  const rows = data.types.map((item) => chartRow({type: item.type},
    [el("span", {class: "dot " + item.type}), item.type],
    el("td", {class: "number"}, count(item.count)),
    el("td", {class: "wide"}, bar([{kind: item.type, value: size(item)}], max)),
    hasAp && el("td", {class: "number"}, digits(item.delta_ap, 3))));
  const table = el("table", {class: "chart"}, el("thead", {}, el("tr", {},
    el("th", {scope: "col"}, "type"), el("th", {scope: "col", class: "number"}, "errors"),
    el("td", {}), hasAp && el("th", {scope: "col", class: "number"}, "delta AP"))), el("tbody", {}, rows));
  const tide = data.tide_average_precision, isOther = isKnown(tide) && Math.abs(tide - data.average_precision) >= 0.0005;
  return hasAp ? card("Delta AP by error type", "increase of average precision if the errors of a type are corrected (TIDE); errors of every score count, as in average precision" + (threshold ? ", not only those from " + threshold + " on" : "")
    + (isOther ? ". TIDE starts from an average precision of " + digits(tide, 3) + ": it counts classes that are detected, but have no objects, as 0" : ""), table)
    : card("Errors by type", "average precision is undefined without ground-truth objects", table);
}

function classChart() {
  const sum = (item) => TYPES.reduce((total, type) => total + item.errors[type], 0);
  const classes = data.classes.filter((item) => sum(item) > 0).sort((a, b) => sum(b) - sum(a) || (a.name < b.name ? -1 : 1));
  const max = classes.length ? sum(classes[0]) : 0;
  const row = (item) => {
    const parts = TYPES.map((type) => ({kind: type, value: item.errors[type], title: type + ": " + item.errors[type]}));
    const summary = parts.filter((part) => part.value).map((part) => part.title).join(", ");
    return chartRow({label: String(item.label)}, item.name,
      hasAp && el("td", {class: "number"}, digits(item.average_precision, 3)),
      el("td", {class: "wide"}, bar(parts, max, item.name + ": " + summary)),
      el("td", {class: "number"}, count(sum(item))));
  };
  const body = el("tbody", {}, classes.slice(0, MAX_CLASSES).map(row));
  const more = classes.length > MAX_CLASSES && el("button", {type: "button", class: "quiet", click: (event) => {
    body.append(...classes.slice(MAX_CLASSES).map(row));
    event.target.remove();
  }}, "show all " + classes.length + " classes");
  const legend = !isUnlabeled && el("p", {class: "legend"}, TYPES.map((type) =>
    el("span", {title: TYPE_TEXTS[type]}, el("span", {class: "dot " + type}), type)));
  const note = !isUnlabeled && "missed objects by their class, others by the detected class; errors of every score";
  return card(isUnlabeled ? "Detections by class" : "Errors by class", note, legend, classes.length ? el("table", {class: "chart"}, el("thead", {}, el("tr", {},
    el("th", {scope: "col"}, "class"), hasAp && el("th", {scope: "col", class: "number"}, "AP"), el("td", {}),
    el("th", {scope: "col", class: "number"}, NOUNS))), body) : el("p", {class: "note"}, "No " + NOUNS + "."), more);
}

// Verdicts of all explained errors; what proposed the evidence, and where it lies, of confirmed ones only.
function evidenceChart() {
  const {explained, confirmed} = data.figures, tallies = data.tallies;
  if (!explained) return "";
  const table = (caption, key, kinds, texts = {}, filter = {}) => {
    const countOf = (kind) => tallies[key][kind] || 0;
    const max = Math.max(...kinds.map(countOf));
    const row = (kind) => chartRow({...filter, [key]: kind}, [el("span", {class: "dot " + kebab(kind)}), texts[kind] || kind],
      el("td", {class: "wide"}, bar([{kind, value: countOf(kind)}], max)),
      el("td", {class: "number"}, count(countOf(kind))));
    return el("table", {class: "chart"}, el("caption", {}, caption), el("tbody", {}, kinds.map(row)));
  };
  const ofConfirmed = {verdict: "confirmed"};
  const names = proposals().filter((name) => tallies.proposal[name]);
  return card("Explained " + NOUNS, null,
    table("verdict", "verdict", VERDICTS, VERDICT_TEXTS),
    confirmed ? table("location of the confirmed evidence", "evidence_location", EVIDENCE_LOCATIONS, LOCATION_TEXTS, ofConfirmed) : "",
    Object.keys(tallies.background_type).length ? table(isUnlabeled ? "type" : "type of the background errors", "background_type", BACKGROUND_TYPES) : "",
    names.length ? table("confirmed evidence proposed by", "proposal", names, {}, ofConfirmed) : "");
}

function showGroups() {
  const groups = data.groups, title = (isUnlabeled ? "Detections" : "Errors") + " with a common cause";
  const note = "groups, " + (hasAp ? "largest delta AP first" : "most confirmed effect first, then highest score");
  if (!groups.length) return;
  const list = el("ol", {class: "groups"}, groups.slice(0, MAX_GROUPS).map(groupItem));
  const more = groups.length > MAX_GROUPS && el("button", {type: "button", class: "quiet", click: (event) => {
    list.append(...groups.slice(MAX_GROUPS).map(groupItem));
    event.target.remove();
  }}, "show all " + groups.length);
  $("groups").hidden = false;
  $("groups").append(el("h2", {}, title), el("p", {class: "note"}, note), list, ...(more ? [more] : []));
}

function groupItem(group) {
  const thumbnails = group.cases.map((item) =>
    el("a", {href: caseLink(item.id), title: item.id, click: () => filterBy({group: String(group.number)}, false)}, thumbnail(item.thumbnail)));
  return el("li", {class: "group"},
    el("div", {class: "group-text"},
      el("p", {class: "sentence"}, group.sentence),
      el("p", {class: "facts"}, !isUnlabeled && tag(group.type), group.background_type && tag(group.background_type), group.name,
        el("button", {type: "button", class: "text", click: () => filterBy({group: String(group.number)})}, "show " + plural(group.size, "case")))),
    el("div", {class: "strip"}, thumbnails));
}

function showAbout() {
  const issues = data.issues, settings = Object.entries(data.settings);
  const entries = issues.map((item) => el("li", {}, el("b", {}, item.kind), " ", item.message));
  if (data.issue_count > issues.length) entries.push(el("li", {}, "and " + count(data.issue_count - issues.length) + " more, in audit.json"));
  const format = (value) => (typeof value === "object" && value !== null ? JSON.stringify(value) : String(value));
  $("about").append(...[
    issues.length && el("details", {}, el("summary", {}, plural(data.issue_count, "data issue")), el("ul", {}, entries)),
    el("details", {}, el("summary", {}, "Settings"), el("dl", {class: "settings"},
      [["adapter", data.adapter], ...settings].map(([name, value]) => [el("dt", {}, name), el("dd", {}, format(value))]))),
    el("p", {class: "note"}, "Other files of this report: ",
      ["audit.json", "false_positives.csv", "false_positives.coco.json"].flatMap((name, index) => [index ? ", " : "", el("a", {href: name}, name)]),
      ". Generated by detcam " + data.detcam_version + " in " + seconds(data.seconds) + "."),
  ].filter(Boolean));
}
