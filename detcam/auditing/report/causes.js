// The hierarchy of causes, as a table whose rows fold out, and the shares of causes among all errors.

function showCauses() {
  const causes = data.causes;
  if (!causes.length) return;
  const isEstimated = isKnown(data.assignment), isOpen = causes.map(() => false), rows = [], toggles = [];
  const hasChildren = (index) => index + 1 < causes.length && causes[index + 1].depth > causes[index].depth;
  const update = () => {
    let closed = Infinity; // depth of the closed row above
    causes.forEach((cause, index) => {
      rows[index].hidden = cause.depth > closed;
      if (cause.depth <= closed) closed = isOpen[index] ? Infinity : cause.depth;
      if (toggles[index]) {
        toggles[index].setAttribute("aria-expanded", String(isOpen[index]));
        toggles[index].textContent = isOpen[index] ? "\u25be" : "\u25b8";
      }
    });
  };
  causes.forEach((cause, index) => {
    if (hasChildren(index)) toggles[index] = el("button", {type: "button", class: "fold", "aria-label": "Causes below " + cause.name,
      click: () => { isOpen[index] = !isOpen[index]; update(); }}, "");
    rows[index] = causeRow(cause, toggles[index], isEstimated);
  });
  update();
  const columns = ["explained", "confirmed", isEstimated && "all " + NOUNS, hasAp && "delta AP"].filter(Boolean);
  const table = el("table", {class: "chart causes"}, el("thead", {}, el("tr", {}, el("th", {scope: "col"}, "cause"),
    columns.map((name) => el("th", {scope: "col", class: "number"}, name)))), el("tbody", {}, rows));
  $("causes").hidden = false;
  $("causes").append(card("Causes", causesNote(isEstimated), el("div", {class: "scroll"}, table),
    ...(data.inventory.length ? [el("p", {class: "note"}, "Shares among all " + NOUNS + ", from a random sample of explained ones, with 95\u202f% intervals:"), el("ul", {class: "shares", tabindex: 0, "aria-label": "Shares of causes"}, data.inventory.map((share) => el("li", {}, share.sentence)))] : [])));
}

function causeRow(cause, toggle, isEstimated) {
  const filter = cause.level === "group" ? {group: String(cause.group)} : cause.level === "kind" ? {evidence_kind: cause.kind} : null;
  const name = filter ? el("button", {type: "button", class: "row-name", click: () => filterBy(filter)}, cause.name) : cause.name;
  const cost = isEstimated ? cause.estimated_delta_ap : cause.delta_ap;
  const number = (text) => el("td", {class: "number"}, text);
  return el("tr", {class: "depth-" + cause.depth}, el("th", {scope: "row", title: cause.name}, toggle || el("span", {class: "fold"}, ""), name),
    number(count(cause.size)), number(count(cause.confirmed_count)),
    isEstimated && number(estimate(cause, NONE)), hasAp && number(digits(cost, 3)));
}

function causesNote(isEstimated) {
  if (!isEstimated || !data.assignment.assigned) return "kinds of evidence, confused classes and groups of the explained " + NOUNS;
  const {error, baseline_error: baseline, assigned} = data.assignment;
  return "all " + NOUNS + ": the explained ones and those among " + plural(assigned, "other") + " that resemble them, with 95\u202f% intervals. In cross-validation "
    + percent(error) + " of the explained " + NOUNS + " get another kind than their own; " + percent(baseline) + " if all got the most frequent one. An error of classes that no explained " + NOUN + " has counts for a kind of evidence only, not for classes or groups.";
}
