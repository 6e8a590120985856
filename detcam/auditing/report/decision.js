// What the page says first: the costliest causes with an action each.

const score4 = (item) => (isKnown(item.estimated_delta_ap) ? item.estimated_delta_ap : item.delta_ap);

function causeFacts(item) {
  return [
    hasAp && isKnown(score4(item)) && el("span", {class: "number", title: "increase of average precision if these errors are corrected"}, "delta AP " + ap(score4(item))),
    item.confirmed_count > 0 && el("span", {}, "evidence confirmed for " + count(item.confirmed_count) + " of " + count(item.size)), // else the sentence says so
    isKnown(item.estimated_count) && el("span", {title: "estimated from the explained errors; 95 % interval"},
      (isExact(item) ? "" : "about ") + estimate(item, " to ") + " such errors in all"),
  ];
}

const causeFilter = (item, name) => {
  const ids = new Set(item.case_ids);
  return {custom: {name, test: (each) => ids.has(each.id)}};
};

function showDecision() {
  if (!data.top_causes.length || isUnlabeled) return;  // detections without annotations need no action by themselves
  const items = data.top_causes.map((cause) => el("li", {class: "cause"},
    el("a", {class: "picture", href: caseLink(cause.example.id), "aria-label": "Case: " + cause.sentence}, thumbnail(cause.example.thumbnail)),
    el("div", {class: "cause-text"},
      el("p", {class: "sentence"}, cause.sentence),
      el("p", {class: "facts"}, causeFacts(cause)),
      el("p", {class: "action"}, cause.action_text),
      el("button", {type: "button", class: "text", click: () => filterBy(causeFilter(cause, cause.sentence))}, "show " + plural(cause.size, "case")))));
  $("first").hidden = false;
  $("first").append(el("h2", {}, "What to do first"), el("ol", {class: "top-causes"}, items),
    el("p", {class: "note"}, "The costliest causes of the explained errors. ", el("code", {}, "detcam repair"), " writes the files for these actions: relabel queues, training pairs, hard negatives."));
}
