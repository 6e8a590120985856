// The image of a case with its layers: heatmap, outlines, boxes. Everything is one SVG, so zooming changes its viewBox.

const LAYERS = [
  ["box", "predicted box", "b"], ["truths", "ground truth", "t"], ["heat", "heatmap", "h"],
  ["evidence", "evidence", "e"], ["needed", "other needed parts", "n"], ["control", "control region", "c"], ["zoom", "zoom to the box", "z"],
];
const layers = {box: true, truths: true, heat: true, evidence: true, needed: true, control: false, zoom: false};
let opacity = start.heat.opacity;

// Maps a heat value h to its color with opacity h, as the overlays do.
function heatFilter() {
  const table = (channel) => start.heat.colors.map((color) => (color[channel] / 255).toFixed(4)).join(" ");
  return svg("filter", {id: "heat-colors", "color-interpolation-filters": "sRGB", x: 0, y: 0, width: 1, height: 1},
    svg("feColorMatrix", {in: "SourceGraphic", type: "matrix", values: "0 0 0 0 0  0 0 0 0 0  0 0 0 0 0  1 0 0 0 0", result: "strength"}),
    svg("feComponentTransfer", {in: "SourceGraphic", result: "colors"},
      ["R", "G", "B"].map((name, index) => svg("feFunc" + name, {type: "table", tableValues: table(index)}))),
    svg("feComposite", {in: "colors", in2: "strength", operator: "in"}));
}

function rectangle(box, kind, title) {
  const [left, top, right, bottom] = box;
  const bounds = {x: left, y: top, width: Math.max(right - left, 0), height: Math.max(bottom - top, 0)};
  return [svg("rect", {...bounds, class: "casing"}), svg("rect", {...bounds, class: "line " + kind}, svg("title", {}, title))];
}

const contour = (path, kind) => (path ? [svg("path", {d: path, class: "casing"}), svg("path", {d: path, class: "line " + kind})] : []);

function viewer(item) {
  const [height, width] = item.image_size_hw;
  const whole = {x: 0, y: 0, width, height, preserveAspectRatio: "none"};
  const outlines = item.outlines || {};
  const source = link(item.image.file), heat = item.files && link(item.files.heatmap);
  const parts = {
    heat: heat ? [svg("image", {...whole, href: heat, filter: "url(#heat-colors)"})] : [],
    truths: groundTruthBoxes(item),
    control: contour(outlines.control, "control"),
    needed: contour(outlines.needed, "needed"),
    evidence: contour(outlines.evidence, "evidence"),
    box: rectangle(item.box_xyxy, item.type === "missed" ? "truth concerned" : "predicted", item.name + " " + score(item.score)),
  };
  const label = "Image " + item.file_name + ": " + item.name + ", " + item.type;
  const node = svg("svg", {class: "viewer-image", role: "img", "aria-label": label, preserveAspectRatio: "xMidYMid meet"}, svg("defs", {}, heatFilter()),
    source ? svg("image", {...whole, href: source}) : svg("rect", {...whole, class: "no-image"}));
  const groups = {};
  for (const [name, content] of Object.entries(parts)) {
    groups[name] = svg("g", {"data-layer": name}, content);
    node.append(groups[name]);
  }
  const empty = new Set(Object.keys(parts).filter((name) => !parts[name].length));
  const update = () => {
    for (const name of Object.keys(parts)) groups[name].style.display = layers[name] ? "" : "none";
    groups.heat.style.opacity = opacity;
    node.setAttribute("viewBox", (layers.zoom ? zoomView(item) : [0, 0, width, height]).join(" "));
  };
  const panel = switches(empty, update, Boolean(heat));
  node.style.aspectRatio = width + " / " + height;
  update();
  return {node: el("div", {class: "viewer"}, node, panel.node), toggle: panel.toggle};
}

function groundTruthBoxes(item) {
  const objects = item.objects || (item.ground_truth ? [item.ground_truth] : []);
  const concerned = item.ground_truth && String(item.ground_truth.annotation_id);
  return objects.flatMap((object) => {
    const kind = object.crowd ? "truth crowd" : String(object.annotation_id) === concerned ? "truth concerned" : "truth";
    return rectangle(object.box_xyxy, kind, "ground truth: " + object.name);
  });
}

// A view of the box and its surroundings, with the aspect ratio of the image.
function zoomView(item) {
  const [height, width] = item.image_size_hw, [left, top, right, bottom] = item.box_xyxy;
  const scale = Math.min(1, Math.max((right - left) * 2.4 / width, (bottom - top) * 2.4 / height, 24 / Math.max(width, height)));
  const viewWidth = width * scale, viewHeight = height * scale;
  const start = (center, size, max) => Math.min(Math.max(center - size / 2, 0), max - size);
  return [start((left + right) / 2, viewWidth, width), start((top + bottom) / 2, viewHeight, height), viewWidth, viewHeight];
}

function switches(empty, update, hasHeat) {
  const checkboxes = {};
  const toggle = (name, on = !layers[name]) => {
    if (empty.has(name)) return;
    layers[name] = on;
    checkboxes[name].checked = on;
    update();
  };
  const items = LAYERS.map(([name, text, key]) => {
    checkboxes[name] = el("input", {type: "checkbox", id: "layer-" + name, "aria-keyshortcuts": key, disabled: empty.has(name),
      change: (event) => toggle(name, event.target.checked)});
    checkboxes[name].checked = layers[name] && !empty.has(name);
    return el("label", {class: "switch " + (empty.has(name) ? "off" : "")}, checkboxes[name], el("span", {class: "sample " + name}), text, el("kbd", {}, key));
  });
  const shownOpacity = el("output", {for: "opacity"}, percent(opacity));
  const slider = hasHeat && el("label", {class: "opacity"}, "opacity", el("input", {type: "range", id: "opacity", min: 0, max: 1, step: 0.05, value: opacity,
    input: (event) => { opacity = Number(event.target.value); shownOpacity.textContent = percent(opacity); toggle("heat", true); }}), shownOpacity);
  return {node: el("div", {class: "switches", role: "group", "aria-label": "Layers"}, items, slider, hasHeat && heatScale()), toggle};
}

function heatScale() {
  const ramp = el("span", {class: "ramp"});
  const stops = start.heat.colors.map(([r, g, b], index) => `rgba(${r}, ${g}, ${b}, ${(index / (start.heat.colors.length - 1)).toFixed(3)})`);
  ramp.style.backgroundImage = "linear-gradient(to right, " + stops.join(", ") + ")";
  return el("span", {class: "scale"}, "0", ramp, "1");
}
