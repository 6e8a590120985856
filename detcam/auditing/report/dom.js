// Labels and numbers of the report.

const TYPES = ["classification", "localization", "both", "duplicate", "background", "missed"];
const EVIDENCE_LOCATIONS = ["predicted box", "ground truth", "same class", "ring", "scene"];
const CONFIRMED = ["strong", "weak"];
const VERDICTS = ["strong", "weak", "not confirmed", "not tested"];
const VERDICT_TEXTS = {strong: "strongly confirmed", weak: "weakly confirmed"};
const isConfirmed = (item) => CONFIRMED.includes(item.verdict);
const LOCATION_TEXTS = {
  "predicted box": "predicted box",
  "ground truth": "ground truth",
  "same class": "same-class object",
  "ring": "around the box",
  "scene": "rest of the image",
};
const BACKGROUND_TYPES = ["missing annotation", "look-alike", "context"];
const TYPE_TEXTS = {
  classification: "correct location, wrong class",
  localization: "correct class, inaccurate box",
  both: "wrong class, inaccurate box",
  duplicate: "second detection of an object",
  background: "no object of the class",
  missed: "object without a detection",
};

const percent = (value) => {
  if (!isKnown(value)) return NONE;
  const scaled = 100 * value;
  if (scaled > 0 && scaled < 0.005) return "<0.01\u202f%";
  return (scaled > 0 && scaled < 1 ? scaled.toFixed(scaled < 0.1 ? 2 : 1) : Math.round(scaled)) + "\u202f%";
};
const score = (value) => digits(value, 3);
const ap = (value) => (isKnown(value) && value !== 0 && Math.abs(value) < 0.00005 ? "<0.0001" : digits(value, 4));
const count = (value) => value.toLocaleString("en").replaceAll(",", "\u202f");
const plural = (value, word) => count(value) + " " + word + (value === 1 ? "" : "s");
const seconds = (value) => {
  if (value < 90) return digits(value, value < 10 ? 1 : 0) + " s";
  return value < 5400 ? Math.round(value / 60) + " min" : digits(value / 3600, 1) + " h";
};

// The estimated number of errors of a cause; without its interval where that has no width.
const isExact = (cause) => cause.estimated_interval.every((limit) => Math.round(limit) === Math.round(cause.estimated_count));
const estimate = (cause, to) => {
  const [number, low, high] = [cause.estimated_count, ...cause.estimated_interval].map((value) => (isKnown(value) ? count(Math.round(value)) : NONE));
  return isExact(cause) || !isKnown(cause.estimated_interval[0]) ? number : number + " (" + low + to + high + ")";
};

const caseLink = (id) => "#case=" + encodeURIComponent(id);

const tag = (kind, text) => el("span", {class: "tag " + kebab(kind)}, text || VERDICT_TEXTS[kind] || kind);

// Average precision, and so delta AP, is undefined without ground-truth objects.
const hasAp = isKnown(data.average_precision);
const threshold = start.score_threshold;
// "location of the confirmed evidence", "location of the tested region", ...
const regionName = (item) => (isConfirmed(item) ? "confirmed evidence" : item.verdict === "not tested" ? "strongest evidence" : "tested region");

// A stacked bar of {kind, value, title}. A total of `max` fills the whole width.
function bar(parts, max, label) {
  const total = parts.reduce((sum, part) => sum + part.value, 0);
  const node = el("span", {class: "bar", role: label ? "img" : null, "aria-label": label || null});
  const filled = el("span", {class: "filled"});
  filled.style.width = (max > 0 ? 100 * total / max : 0) + "%";
  for (const part of parts) {
    if (part.value <= 0) continue;
    const piece = el("span", {class: "piece " + kebab(part.kind), title: part.title || null});
    piece.style.flexGrow = part.value / total;
    filled.append(piece);
  }
  node.append(filled);
  return node;
}

function stored(name, value) {
  try {
    if (value === undefined) return localStorage.getItem("detcam." + name);
    localStorage.setItem("detcam." + name, value);
  } catch { /* no local storage for files: the setting lasts until the page is closed */ }
  return value === undefined ? null : value;
}
