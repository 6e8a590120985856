// A case: its image, its explanation, and every trial of its verification.

let opened = null;

async function showCase(row) {
  current = row;
  const item = await whole(row);
  if (current !== row || requestedId() !== row.id) return;
  opened = viewer(item);
  const listed = position(row);
  const list = listed < 0 ? [item] : shown;
  const index = Math.max(listed, 0);
  const step = (by, text, key) => {
    const other = list[index + by];
    return el("a", {class: "button" + (other ? "" : " off"), href: other && caseLink(other.id), "aria-disabled": other ? null : "true", "aria-keyshortcuts": key}, text);
  };
  $("case").replaceChildren(
    el("nav", {class: "steps", "aria-label": "Cases"},
      el("a", {class: "button", href: "#", "aria-keyshortcuts": "Escape"}, "\u2190 All cases"),
      el("span", {class: "of"}, listed < 0 ? "not in the filtered list" : count(index + 1) + " of " + count(list.length)),
      step(-1, "Previous", "k"), step(1, "Next", "j")),
    el("div", {class: "case-head"},
      el("h1", {}, item.name, " ", el("span", {class: "number"}, score(item.score))),
      el("p", {class: "facts"}, !isUnlabeled && tag(item.type), tag(item.verdict), item.background_type && tag(item.background_type), el("span", {class: "file"}, item.file_name))),
    el("div", {class: "case-body"}, opened.node, el("div", {class: "findings"}, findings(item))));
  document.title = item.name + " " + score(item.score) + ", " + item.file_name;
}

function findings(item) {
  return [
    item.sentence && el("p", {class: "lead"}, item.sentence),
    item.question && block("Question", el("p", {}, item.question)),
    item.method ? block("Verdict", verdict(item)) : el("p", {class: "note"}, "This " + NOUN + " is not explained."),
    item.evidence_shares && block("Location of the " + regionName(item), shares(item)),
    item.parts && block("Parts of the evidence", parts(item)),
    item.trials && block("Verification", trials(item)),
    block("Details", details(item)),
  ];
}

// As the sentences say it.
const imageShare = (value) => (100 * value >= 1 ? digits(100 * value, 1) + "\u202f%" : percent(value));

const block = (title, ...content) => el("section", {}, el("h2", {}, title), content);

// Grade, reason, and the size of the verdict.
function verdict(item) {
  const rows = [
    ["effect", isKnown(item.effect) && digits(item.effect, 2), item.type === "missed"
      ? "score that the object gains beyond all controls, relative to the score threshold" : "score that the evidence costs beyond the costliest control, relative to the score"],
    ["error rate", isKnown(item.error_rate) && "about " + percent(item.error_rate) + " of wrong regions get this grade", "the center of the 95 % interval measured with wrong regions"],
    [isConfirmed(item) ? "evidence proposed by" : "region proposed by", item.proposal],
  ];
  const isSaid = item.reason && item.sentence && item.sentence.includes(item.reason);
  return [el("p", {}, tag(item.verdict), " ", (!isSaid && item.reason) || ""), numbers(rows)];
}

const numbers = (rows) => el("dl", {class: "numbers"}, rows.filter(([, value]) => isKnown(value) && value !== false && value !== "")
  .map(([name, value, title]) => [el("dt", {title}, name), el("dd", {}, value)]));

// The evidence and the parts that were removed alone. A part is needed if the error ends without it alone.
function parts(item) {
  const trialScores = (item.trials || []).filter((trial) => trial.intervention === "without evidence").map((trial) => trial.score);
  const row = (name, fraction, location, without, ends, text) => el("tr", {},
    el("th", {scope: "row"}, name), el("td", {class: "number"}, percent(fraction)), el("td", {}, locationText(item, location)),
    el("td", {class: "number"}, score(without)), el("td", {class: ends ? "ends" : "joint"}, text));
  const head = ["removed alone", "size", "location", "score", "the " + NOUN].map((name) =>
    el("th", {scope: "col", class: ["size", "score"].includes(name) ? "number" : null}, name));
  const rows = item.parts.map((part, index) => row("part " + (index + 1), part.fraction, part.location, part.score, part.needed,
    part.needed ? "ends" : "ends only together"));
  const whole = trialScores.length ? [row("evidence", item.evidence_fraction, item.evidence_location, Math.max(...trialScores), true, "ends")] : [];
  return scrollable("Parts", el("table", {class: "parts"}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, whole, rows)));
}


// The ground truth of a background error is only an object nearby.
const locationText = (item, location) =>
  (location === "ground truth" && item.type === "background" && item.ground_truth ? "nearby " + item.ground_truth.name : LOCATION_TEXTS[location]);

function shares(item) {
  const values = item.evidence_shares;
  const pieces = EVIDENCE_LOCATIONS.filter((location) => values[location] > 0).map((location) => ({kind: location, value: values[location], title: location + ": " + percent(values[location])}));
  return [bar(pieces, 1, pieces.map((piece) => piece.title).join(", ")),
    el("ul", {class: "legend column"}, pieces.map((piece) => el("li", {},
      el("span", {class: "dot " + kebab(piece.kind)}), locationText(item, piece.kind), el("span", {class: "number"}, percent(piece.value)))))];
}

function trials(item) {
  const row = (trial) => el("tr", {class: trial.intervention.includes("control") ? "control" : ""},
    el("th", {scope: "row"}, trial.intervention), el("td", {}, trial.fill),
    el("td", {class: "number"}, score(trial.score)),
    el("td", {class: "wide"}, bar([{kind: item.type, value: trial.score}], 1)),
    el("td", {}, tag(trial.outcome)));
  const head = ["intervention", "fill", "score", "", "outcome"].map((name) =>
    name ? el("th", {scope: "col", class: name === "score" ? "number" : null}, name) : el("td", {class: "wide"}));
  const before = el("tr", {class: "before"}, el("th", {scope: "row"}, "original image"), el("td", {}, ""), el("td", {class: "number"}, score(item.score)),
    el("td", {class: "wide"}, bar([{kind: item.type, value: item.score}], 1)), el("td", {}));
  const controls = item.trials.filter((trial) => trial.intervention.includes("control")).length;
  const compared = item.compared_controls;
  return [scrollable("Trials", el("table", {class: "trials"}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, before, item.trials.map(row)))),
    compared && compared < controls && el("p", {class: "note"}, "The effect compares " + compared + " of the " + controls + " controls. Without each of the others, the object is no longer detected, which says nothing about the evidence.")];
}

function details(item) {
  const truth = item.ground_truth, group = isKnown(item.group) && groupText(item.group);
  const [left, top, right, bottom] = item.box_xyxy;
  const rows = [
    ["delta AP", isKnown(item.delta_ap) ? ap(item.delta_ap) : hasAp && "undefined, " + (item.type === "missed" ? "there is no other object" : "the class has no objects")],
    ["trust", isKnown(item.trust) ? digits(item.trust, 2) : null],
    ...Object.entries(item.trust_signals || {}).filter(([name]) => name !== "score").map(([name, value]) => [name, digits(value, 2)]),
    isUnlabeled ? ["", null] : ["false positive", item.is_false_positive ? "yes" : item.type === "missed" ? "no, a missed object" : "no"],
    [item.type === "background" ? "nearby ground truth" : "ground truth", truth && truth.name + (truth.is_known === false ? " (a class that the model does not know)" : "")],
    [item.type === "missed" ? "largest IoU with a detection" : "IoU with ground truth", truth && digits(truth.iou, 3)],
    ["typicality", isKnown(item.typicality) ? percent(item.typicality) : null],
    [regionName(item) + " lies on", item.evidence_object && "another object: " + item.evidence_object],
    [regionName(item) + ", share of image", isKnown(item.evidence_fraction) ? imageShare(item.evidence_fraction) : null],
    ["minimal region, share of image", item.trials ? (isKnown(item.minimal_region_fraction) ? imageShare(item.minimal_region_fraction) : "none") : null],
    ["heatmap maximum at", item.peak_xy && item.peak_xy.join(", ")],
    ["failure stage", item.failure_stage],
    ["rests on", item.evidence_comparison],
    ["group", group && el("button", {type: "button", class: "text", click: () => { filterBy({group: String(item.group)}, false); location.hash = ""; }}, group)],
    ["box", [left, top].map((value) => digits(value, 1)).join(", ") + "; " + digits(right - left, 1) + " \u00d7 " + digits(bottom - top, 1)],
    ["image", item.image_size_hw[1] + " \u00d7 " + item.image_size_hw[0] + ", id " + item.image_id],
    ["method", item.method],
    ["forward passes", item.method ? digits(item.forward_passes, 1) : null],
    ["case", el("a", {href: caseLink(item.id)}, item.id)],
  ];
  return numbers(rows);
}
