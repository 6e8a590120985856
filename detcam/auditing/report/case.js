// One case: its image, what was found, and every trial.

const images = new Map((data.images || []).map((one) => [one.image_id, one]));
let opened = null;

function showCase(one) {
  current = one;
  opened = stage(one);
  const place = position(one);
  const list = place < 0 ? [one] : shown;
  const at = Math.max(place, 0);
  const step = (by, words, key) => {
    const other = list[at + by];
    return el("a", {class: "button" + (other ? "" : " off"), href: other && caseLink(other.id), "aria-disabled": other ? null : "true", "aria-keyshortcuts": key}, words);
  };
  $("case").replaceChildren(
    el("nav", {class: "steps", "aria-label": "Cases"},
      el("a", {class: "button", href: "#", "aria-keyshortcuts": "Escape"}, "\u2190 All cases"),
      el("span", {class: "of"}, place < 0 ? "not in the filtered list" : count(at + 1) + " of " + count(list.length)),
      step(-1, "Previous", "k"), step(1, "Next", "j")),
    el("div", {class: "case-head"},
      el("h1", {}, one.name, " ", el("span", {class: "number"}, score(one.score))),
      el("p", {class: "facts"}, tag(one.type), tag(one.verdict), one.background_type && tag(one.background_type, BACKGROUND_WORDS[one.background_type]), el("span", {class: "file"}, one.file_name))),
    el("div", {class: "case-body"}, opened.node, el("div", {class: "findings"}, findings(one))));
  document.title = one.name + " " + score(one.score) + ", " + one.file_name;
}

function findings(one) {
  return [
    one.sentence && el("p", {class: "lead"}, one.sentence),
    one.question && block("Question", el("p", {}, one.question)),
    one.method ? block("Verdict", el("p", {}, tag(one.verdict), " ", one.reason || "")) :
      el("p", {class: "note"}, "This error was counted, not explained."),
    one.evidence_shares && block("Where the evidence lies", shares(one)),
    one.trials && block("Trials", trials(one)),
    block("Numbers", numbers(one)),
  ];
}

const block = (title, ...content) => el("section", {}, el("h2", {}, title), content);

function shares(one) {
  const found = one.evidence_shares;
  // A detection of nothing has no object of its own, only one that it touches.
  const words = (place) => (place === "ground truth" && one.type === "background" && one.ground_truth ? "on a " + one.ground_truth.name + " that it touches" : LOCATION_WORDS[place]);
  const parts = EVIDENCE_LOCATIONS.filter((place) => found[place] > 0).map((place) => ({kind: place, value: found[place], title: place + ": " + percent(found[place])}));
  return [bar(parts, 1, parts.map((part) => part.title).join(", ")),
    el("ul", {class: "legend column"}, parts.map((part) => el("li", {},
      el("span", {class: "dot " + kebab(part.kind)}), words(part.kind), el("span", {class: "number"}, percent(part.value)))))];
}

function trials(one) {
  const row = (trial) => el("tr", {class: trial.intervention.includes("control") ? "control" : ""},
    el("th", {scope: "row"}, trial.intervention), el("td", {}, trial.fill),
    el("td", {class: "number"}, score(trial.score)),
    el("td", {class: "wide"}, bar([{kind: one.type, value: trial.score}], 1)),
    el("td", {}, tag(trial.outcome)));
  const head = ["image", "filled with", "score", "", "detection"].map((word) =>
    word ? el("th", {scope: "col", class: word === "score" ? "number" : null}, word) : el("td", {class: "wide"}));
  const before = el("tr", {class: "before"}, el("th", {scope: "row"}, "as it is"), el("td", {}, ""), el("td", {class: "number"}, score(one.score)),
    el("td", {class: "wide"}, bar([{kind: one.type, value: one.score}], 1)), el("td", {}));
  return el("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": "Trials"},
    el("table", {class: "trials"}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, before, one.trials.map(row))));
}

function numbers(one) {
  const truth = one.ground_truth, group = known(one.group) && (data.groups || []).find((each) => each.number === one.group);
  const [left, top, right, bottom] = one.box_xyxy;
  const rows = [
    ["AP lost", ap(one.delta_ap)],
    ["counts as wrong", one.is_false_positive ? "yes" : one.type === "missed" ? "no, a missed object" : "no"],
    [one.type === "background" ? "true object nearby" : "ground truth", truth && truth.name],
    ["overlap with it (IoU)", truth && digits(truth.iou, 3)],
    ["right ones that look less like it", known(one.typicality) ? percent(one.typicality) : null],
    ["evidence, share of the image", known(one.evidence_fraction) ? percent(one.evidence_fraction) : null],
    ["smallest that undoes it", one.trials ? (known(one.minimal_region_fraction) ? percent(one.minimal_region_fraction) : "none did") : null],
    ["strongest evidence at", one.peak_xy && one.peak_xy.join(", ")],
    ["failure stage", one.failure_stage],
    ["rests on", one.evidence_comparison],
    ["group", group && el("button", {type: "button", class: "text", click: () => { filterBy({group: String(group.number)}, false); location.hash = ""; }}, group.sentence)],
    ["box", [left, top].map((value) => digits(value, 1)).join(", ") + "; " + digits(right - left, 1) + " \u00d7 " + digits(bottom - top, 1)],
    ["image", one.image_size_hw[1] + " \u00d7 " + one.image_size_hw[0] + ", id " + one.image_id],
    ["method", one.method],
    ["forward passes", one.method ? digits(one.forward_passes, 1) : null],
    ["case", el("a", {href: caseLink(one.id)}, one.id)],
  ];
  return el("dl", {class: "numbers"}, rows.filter(([, value]) => known(value) && value !== false && value !== "").map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}
