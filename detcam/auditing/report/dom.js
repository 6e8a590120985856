// Elements, numbers and words. Text from data only ever becomes text nodes and attributes, never markup.

const SVG = "http://www.w3.org/2000/svg";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

const TYPES = ["classification", "localization", "both", "duplicate", "background", "missed"];
const EVIDENCE_LOCATIONS = ["predicted box", "ground truth", "same class", "ring", "scene"];
const VERDICTS = ["confirmed", "unconfirmed", "not tested"];
const LOCATION_WORDS = {
  "predicted box": "in the predicted box",
  "ground truth": "on the true object",
  "same class": "on another of the class",
  "ring": "in the ring around the box",
  "scene": "elsewhere in the scene",
};
const BACKGROUND_TYPES = ["missing annotation", "look-alike", "context"];
const BACKGROUND_WORDS = {
  "missing annotation": "perhaps unlabelled",
  "look-alike": "look-alike",
  "context": "from its surroundings",
};
const TYPE_WORDS = {
  classification: "right place, wrong class",
  localization: "right class, wrong place",
  both: "wrong place and wrong class",
  duplicate: "an object found twice",
  background: "nothing of the kind there",
  missed: "an object not found",
};

// attributes: strings and numbers become attributes, true an empty one, functions listeners; null and false nothing.
function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(2)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const known = (value) => value !== null && value !== undefined;
const MINUS = "\u2212", NONE = "\u2013";
const digits = (value, count) => (known(value) ? value.toFixed(count).replace("-", MINUS) : NONE);
const percent = (value) => {
  if (!known(value)) return NONE;
  const share = 100 * value;
  return (share > 0 && share < 1 ? share.toFixed(share < 0.1 ? 2 : 1) : Math.round(share)) + "\u202f%";
};
const score = (value) => digits(value, 3);
const ap = (value) => (known(value) && value !== 0 && Math.abs(value) < 0.00005 ? "<0.0001" : digits(value, 4));
const count = (value) => value.toLocaleString("en").replaceAll(",", "\u202f");
const plural = (value, word) => count(value) + " " + word + (value === 1 ? "" : "s");
const kebab = (text) => text.replaceAll(" ", "-");
const seconds = (value) => {
  if (value < 90) return digits(value, value < 10 ? 1 : 0) + " s";
  return value < 5400 ? Math.round(value / 60) + " min" : digits(value / 3600, 1) + " h";
};

// A file of the report as a link: every part of its path escaped.
const link = (path) => (known(path) ? path.split("/").map(encodeURIComponent).join("/") : null);
const caseLink = (id) => "#case=" + encodeURIComponent(id);

const tag = (kind, text) => el("span", {class: "tag " + kebab(kind)}, text || kind);

// A stacked bar: parts are {kind, value, title}; the whole bar is as long as `most` stands for.
function bar(parts, most, label) {
  const total = parts.reduce((sum, part) => sum + part.value, 0);
  const node = el("span", {class: "bar", role: label ? "img" : null, "aria-label": label || null});
  const filled = el("span", {class: "filled"});
  filled.style.width = (most > 0 ? 100 * total / most : 0) + "%";
  for (const part of parts) {
    if (part.value <= 0) continue;
    const piece = el("span", {class: "piece " + kebab(part.kind), title: part.title || null});
    piece.style.flexGrow = part.value / total;
    filled.append(piece);
  }
  node.append(filled);
  return node;
}

function remember(name, value) {
  try {
    if (value === undefined) return localStorage.getItem("detcam." + name);
    localStorage.setItem("detcam." + name, value);
  } catch { /* a browser that keeps nothing for files: the choice lasts until the page is closed */ }
  return value === undefined ? null : value;
}
