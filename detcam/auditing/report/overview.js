// What stands above the list of cases: headline, figures, charts, groups; and below it: issues and settings.

const MOST_CLASSES = 12, MOST_GROUPS = 8, MOST_THUMBNAILS = 6;

function showOverview() {
  $("subject").textContent = data.model + " on " + data.annotations;
  const [first, ...rest] = data.headline;
  $("headline").append(el("h1", {}, first), el("p", {class: "lead"}, rest.join(" ")));
  showFigures();
  $("charts").append(lostChart(), classChart(), evidenceChart());
  showGroups();
  showAbout();
}

function showFigures() {
  const explained = data.cases.filter((one) => one.method).length;
  const confirmed = data.cases.filter((one) => one.verdict === "confirmed").length;
  const missed = data.cases.filter((one) => one.type === "missed").length;
  const figures = [
    ["AP at IoU " + digits(data.iou_threshold, 2), digits(data.average_precision, 3), "COCO's average precision, mean over classes"],
    ["images", count(data.image_count)],
    ["objects", count(data.object_count)],
    ["false positives", count(data.false_positive_count)],
    ["missed objects", count(missed)],
    ["explained", count(explained), "errors that were explained and tested; the list below holds all"],
    ["confirmed", count(confirmed), "the error vanishes without the evidence, with every fill, and with no control"],
  ];
  $("figures").append(el("dl", {class: "figures"}, figures.map(([name, value, title]) =>
    el("div", {title}, el("dt", {}, name), el("dd", {}, value)))));
}

// A row of a chart that filters the list when it is clicked.
function chartRow(filter, name, ...cells) {
  const button = el("button", {type: "button", class: "row-name", click: () => filterBy(filter)}, name);
  return el("tr", {}, el("th", {scope: "row"}, button), cells);
}

function card(title, note, ...content) {
  return el("div", {class: "card"}, el("h2", {}, title), note && el("p", {class: "note"}, note), content);
}

function lostChart() {
  const most = Math.max(...data.types.map((one) => one.delta_ap || 0));
  const rows = data.types.map((one) => chartRow({type: one.type},
    [el("span", {class: "dot " + one.type}), one.type],
    el("td", {class: "number"}, count(one.count)),
    el("td", {class: "wide"}, bar([{kind: one.type, value: one.delta_ap || 0}], most)),
    el("td", {class: "number"}, digits(one.delta_ap, 3))));
  return card("AP lost by type of error", "what mending all errors of a type would add (TIDE)",
    el("table", {class: "chart"}, el("thead", {}, el("tr", {},
      el("th", {scope: "col"}, "type"), el("th", {scope: "col", class: "number"}, "errors"),
      el("td", {}), el("th", {scope: "col", class: "number"}, "AP lost"))), el("tbody", {}, rows)));
}

function classChart() {
  const sum = (one) => TYPES.reduce((total, type) => total + one.errors[type], 0);
  const classes = data.classes.filter((one) => sum(one) > 0).sort((a, b) => sum(b) - sum(a) || (a.name < b.name ? -1 : 1));
  const most = classes.length ? sum(classes[0]) : 0;
  const row = (one) => {
    const parts = TYPES.map((type) => ({kind: type, value: one.errors[type], title: type + ": " + one.errors[type]}));
    const words = parts.filter((part) => part.value).map((part) => part.title).join(", ");
    return chartRow({label: String(one.label)}, one.name,
      el("td", {class: "number"}, digits(one.average_precision, 3)),
      el("td", {class: "wide"}, bar(parts, most, one.name + ": " + words)),
      el("td", {class: "number"}, count(sum(one))));
  };
  const body = el("tbody", {}, classes.slice(0, MOST_CLASSES).map(row));
  const more = classes.length > MOST_CLASSES && el("button", {type: "button", class: "quiet", click: (event) => {
    body.append(...classes.slice(MOST_CLASSES).map(row));
    event.target.remove();
  }}, "all " + classes.length + " classes");
  const legend = el("p", {class: "legend"}, TYPES.map((type) =>
    el("span", {title: TYPE_WORDS[type]}, el("span", {class: "dot " + type}), type)));
  return card("Errors by class", null, legend, classes.length ? el("table", {class: "chart"}, el("thead", {}, el("tr", {},
    el("th", {scope: "col"}, "class"), el("th", {scope: "col", class: "number"}, "AP"), el("td", {}),
    el("th", {scope: "col", class: "number"}, "errors"))), body) : el("p", {class: "note"}, "No errors."), more);
}

function evidenceChart() {
  const explained = data.cases.filter((one) => one.evidence_location);
  if (!explained.length) return "";
  const of = (key, value) => explained.filter((one) => one[key] === value).length;
  const rows = (key, kinds, words) => {
    const most = Math.max(...kinds.map((kind) => of(key, kind)));
    return kinds.map((kind) => chartRow({[key]: kind}, [el("span", {class: "dot " + kebab(kind)}), words[kind] || kind],
      el("td", {class: "wide"}, bar([{kind, value: of(key, kind)}], most)),
      el("td", {class: "number"}, count(of(key, kind)))));
  };
  return card("What the explained errors rest on", null,
    el("table", {class: "chart"}, el("caption", {}, "where most of the evidence lies"), el("tbody", {}, rows("evidence_location", EVIDENCE_LOCATIONS, LOCATION_WORDS))),
    of("type", "background") ? el("table", {class: "chart"}, el("caption", {}, "what those of type background are"), el("tbody", {}, rows("background_type", BACKGROUND_TYPES, BACKGROUND_WORDS))) : "",
    el("table", {class: "chart"}, el("caption", {}, "whether it is the cause"), el("tbody", {}, rows("verdict", VERDICTS, {}))));
}

function showGroups() {
  if (!data.groups || !data.groups.length) return;
  const groups = [...data.groups].sort((a, b) => b.delta_ap - a.delta_ap || a.number - b.number);
  const list = el("ol", {class: "groups"}, groups.slice(0, MOST_GROUPS).map(groupItem));
  const more = groups.length > MOST_GROUPS && el("button", {type: "button", class: "quiet", click: (event) => {
    list.append(...groups.slice(MOST_GROUPS).map(groupItem));
    event.target.remove();
  }}, "all " + groups.length + " groups");
  $("groups").hidden = false;
  $("groups").append(el("h2", {id: "groups-title"}, "Errors that share a cause"),
    el("p", {class: "note"}, "groups, the costliest first"), list, ...(more ? [more] : []));
}

function groupItem(group) {
  const cases = group.case_ids || [];
  const thumbnails = cases.slice(0, MOST_THUMBNAILS).map((id) => byId.get(id)).map((one) =>
    el("a", {href: caseLink(one.id), title: one.file_name, click: () => filterBy({group: String(group.number)}, false)}, thumbnail(one)));
  return el("li", {class: "group"},
    el("div", {class: "group-text"},
      el("p", {class: "reading"}, group.sentence),
      el("p", {class: "facts"}, tag(group.type), group.background_type && tag(group.background_type), group.name,
        el("span", {class: "number"}, ap(group.delta_ap) + " AP"),
        el("span", {}, group.confirmed_count + " of " + cases.length + " confirmed"),
        el("button", {type: "button", class: "text", click: () => filterBy({group: String(group.number)})}, "show " + plural(cases.length, "case")))),
    el("div", {class: "strip"}, thumbnails));
}

function showAbout() {
  const issues = data.issues || [], settings = Object.entries(data.settings || {});
  const items = issues.slice(0, 200).map((one) => el("li", {}, el("b", {}, one.kind), " ", one.message));
  if (issues.length > items.length) items.push(el("li", {}, "and " + (issues.length - items.length) + " more, in audit.json"));
  const written = (value) => (typeof value === "object" && value !== null ? JSON.stringify(value) : String(value));
  $("about").append(...[
    issues.length && el("details", {}, el("summary", {}, plural(issues.length, "issue") + " with the data"), el("ul", {}, items)),
    el("details", {}, el("summary", {}, "Settings"), el("dl", {class: "settings"},
      [["adapter", data.adapter], ...settings].map(([name, value]) => [el("dt", {}, name), el("dd", {}, written(value))]))),
    el("p", {class: "note"}, "Also in this folder: ",
      ["audit.json", "false_positives.csv", "false_positives.coco.json"].flatMap((name, at) => [at ? ", " : "", el("a", {href: name}, name)]),
      ". Made by detcam " + data.detcam_version + " in " + seconds(data.seconds) + "."),
  ].filter(Boolean));
}
