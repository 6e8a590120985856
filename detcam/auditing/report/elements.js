// Elements and numbers of the pages of reports and comparisons. Text from the data becomes text nodes and attributes
// only, never markup.

const SVG = "http://www.w3.org/2000/svg";
const $ = (id) => document.getElementById(id);

// Strings and numbers become attributes, true an empty attribute, functions event listeners; null and false are skipped.
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

const scrollable = (name, table) => el("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": `${name}, table`}, table);

const isKnown = (value) => value !== null && value !== undefined;
const MINUS = "\u2212", NONE = "\u2013";
const digits = (value, count) => (isKnown(value) ? value.toFixed(count).replace("-", MINUS) : NONE);
const kebab = (text) => text.replaceAll(" ", "-");
// Link to a file of the report, with every part of the path escaped.
const link = (path) => (isKnown(path) ? path.split("/").map(encodeURIComponent).join("/") : null);

// A card of a case is a link, but takes Space as well as Enter.
document.addEventListener("keydown", (event) => {
  if (event.key !== " " || !event.target.matches(".case-card")) return;
  event.preventDefault();
  event.target.click();
});
