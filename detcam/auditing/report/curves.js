// Precision and recall by score, and which classes the errors confuse.

const PLOT = {width: 300, height: 190, left: 30, right: 8, top: 8, bottom: 32};
const plotX = (value) => PLOT.left + value * (PLOT.width - PLOT.left - PLOT.right);
const plotY = (value) => PLOT.top + (1 - value) * (PLOT.height - PLOT.top - PLOT.bottom);

// A plot of both axes from 0 to 1. Lines are {kind, points}; marks are children in its coordinates.
function plot(label, xName, lines, marks) {
  const grid = [0, 0.5, 1].flatMap((value) => [
    svg("line", {class: "grid", x1: plotX(0), x2: plotX(1), y1: plotY(value), y2: plotY(value)}),
    svg("line", {class: "grid", x1: plotX(value), x2: plotX(value), y1: plotY(0), y2: plotY(1)}),
    svg("text", {x: plotX(value), y: plotY(0) + 14, "text-anchor": value === 0 ? "start" : value === 1 ? "end" : "middle"}, String(value)),
    svg("text", {x: plotX(0) - 5, y: plotY(value) + 4, "text-anchor": "end"}, String(value))]);
  const paths = lines.map(({kind, points}) => svg("path", {class: "curve " + kind,
    d: points.map(([x, y], index) => (index ? "L" : "M") + plotX(x).toFixed(1) + " " + plotY(y).toFixed(1)).join("")}));
  return svg("svg", {class: "plot", viewBox: "0 0 " + PLOT.width + " " + PLOT.height, role: "img", "aria-label": label},
    grid, svg("text", {x: plotX(0.5), y: PLOT.height - 4, "text-anchor": "middle"}, xName), paths, marks);
}

function curvesCard() {
  const curves = data.curves;
  if (!curves) return "";
  const {thresholds, precision, recall, f1} = curves;
  const known = thresholds.map((_, index) => index).filter((index) => isKnown(precision[index]) && isKnown(recall[index]));
  if (!known.length) return "";
  const nearest = (value) => known.reduce((best, index) => (Math.abs(thresholds[index] - value) < Math.abs(thresholds[best] - value) ? index : best));
  const here = nearest(threshold), best = known.reduce((top, index) => (f1[index] > f1[top] ? index : top));
  const text = (index) => "precision " + digits(precision[index], 2) + ", recall " + digits(recall[index], 2) + ", F1 " + digits(f1[index], 2);
  const line = (kind, x, y) => ({kind, points: known.map((index) => [x[index], y[index]])});
  const dot = (x, y) => svg("circle", {class: "here", cx: plotX(x), cy: plotY(y), r: 4});
  const atThreshold = "At the score threshold " + threshold + ": " + text(here) + ".";
  return card("Precision and recall", "all classes together; the threshold is marked",
    el("div", {class: "plots"},
      el("figure", {}, plot("Precision over recall. " + atThreshold, "recall", [line("precision", recall, precision)], [dot(recall[here], precision[here])]),
        el("figcaption", {}, "precision over recall")),
      el("figure", {}, plot("Precision, recall and F1 over the score threshold. " + atThreshold, "score threshold",
        [line("precision", thresholds, precision), line("recall", thresholds, recall), line("f1", thresholds, f1)],
        [svg("line", {class: "here", x1: plotX(threshold), x2: plotX(threshold), y1: plotY(0), y2: plotY(1)})]),
      el("figcaption", {class: "legend"}, [["precision", "precision"], ["recall", "recall"], ["f1", "F1"]].map(([kind, name]) =>
        el("span", {}, el("span", {class: "dot curve-" + kind}), name))))),
    el("p", {class: "note"}, atThreshold + " Best F1: " + digits(f1[best], 2) + " at " + digits(thresholds[best], 2) + "."));
}

const trueName = (item) => (item.type === "missed" ? item.name : item.type === "background" || !item.ground_truth ? null : item.ground_truth.name);
const predictedName = (item) => (item.type === "missed" ? null : item.name);

// Errors by true class (rows) and predicted class (columns).
function confusionCard() {
  if (!data.confusions) return "";
  const {names, cells, class_count} = data.confusions;
  if (!cells.length) return "";
  const numbers = new Map(cells.map(([truth, predicted, number]) => [truth + "," + predicted, number]));
  const most = Math.max(...numbers.values());
  const name = (index, other) => (index < 0 ? other : names[index]);
  const cell = (truth, predicted) => {
    const number = numbers.get(truth + "," + predicted);
    if (!number) return el("td", {});
    const title = name(truth, "background") + " \u2192 " + name(predicted, "missed") + (truth === predicted ? ", inaccurate box or duplicate" : "");
    const test = (item) => (item.type === "missed" || item.score >= threshold) && trueName(item) === name(truth, null) && predictedName(item) === name(predicted, null);
    const button = el("button", {type: "button", title, "aria-label": title + ": " + plural(number, "error"), click: () => filterBy({custom: {name: title, test}})}, count(number));
    const node = el("td", {}, button);
    button.style.setProperty("--share", (0.08 + 0.37 * Math.sqrt(number / most)).toFixed(3));
    return node;
  };
  const indices = names.map((_, index) => index);
  const head = (index) => el("th", {scope: "col"}, el("span", {}, name(index, "missed")));
  const table = el("table", {class: "confusion"},
    el("thead", {}, el("tr", {}, el("td", {}, "true \\ predicted"), [...indices, -1].map(head))),
    el("tbody", {}, [...indices, -1].map((truth) => el("tr", {}, el("th", {scope: "row"}, name(truth, "background")),
      [...indices, -1].map((predicted) => (truth < 0 && predicted < 0 ? el("td", {}) : cell(truth, predicted)))))));
  const part = class_count > names.length ? "the " + names.length + " classes with the most errors, of " + class_count + "; " : "";
  return el("div", {class: "card"}, el("h2", {}, "Confusions"),
    el("p", {class: "note"}, part + "missed objects, and errors from the score threshold on; equal classes: inaccurate boxes and duplicates"), scrollable("Confusions", table));
}
