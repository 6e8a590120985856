// The image of a case with its layers: two canvases with the image and the heatmap, and over them an SVG with outlines and
// boxes. Zooming changes the viewBox of the SVG and what the canvases show.

const LAYERS = [
  ["box", "predicted box", "b"], ["truths", "ground truth", "t"], ["heat", "heatmap", "h"],
  ["evidence", "evidence", "e"], ["needed", "other needed parts", "n"], ["control", "control region", "c"], ["zoom", "zoom to the box", "z"],
];
const layers = {box: true, truths: true, heat: true, evidence: true, needed: true, control: false, zoom: false};
let opacity = start.heat.opacity;

function rectangle(box, kind, title) {
  const [left, top, right, bottom] = box;
  const bounds = {x: left, y: top, width: Math.max(right - left, 0), height: Math.max(bottom - top, 0)};
  return [svg("rect", {...bounds, class: "casing"}), svg("rect", {...bounds, class: "line " + kind}, svg("title", {}, title))];
}

// All cases share the canvases.
const viewed = {image: imageCanvas(), heat: imageCanvas({"data-layer": "heat"})};

const contour = (path, kind) => (path ? [svg("path", {d: path, class: "casing"}), svg("path", {d: path, class: "line " + kind})] : []);

function viewer(item) {
  const [height, width] = item.image_size_hw;
  const outlines = item.outlines || {};
  const source = link(item.image.file), heat = item.files && link(item.files.overlay);
  const parts = {
    truths: groundTruthBoxes(item),
    control: contour(outlines.control, "control"),
    needed: contour(outlines.needed, "needed"),
    evidence: contour(outlines.evidence, "evidence"),
    box: rectangle(item.box_xyxy, item.type === "missed" ? "truth concerned" : "predicted", item.name + " " + score(item.score)),
  };
  const label = "Image " + item.file_name + ": " + item.name + ", " + item.type;
  const node = svg("svg", {class: "viewer-image", role: "img", "aria-label": label, preserveAspectRatio: "none"});
  const groups = {heat: viewed.heat};
  for (const [name, content] of Object.entries(parts)) {
    groups[name] = svg("g", {"data-layer": name}, content);
    node.append(groups[name]);
  }
  const empty = new Set(Object.keys(parts).filter((name) => !parts[name].length));
  if (!heat) empty.add("heat");
  const update = () => {
    for (const [name, group] of Object.entries(groups)) group.style.display = layers[name] && !empty.has(name) ? "" : "none";
    viewed.heat.style.opacity = opacity;
    const [x, y, viewWidth, viewHeight] = layers.zoom ? zoomView(item) : [0, 0, width, height];
    node.setAttribute("viewBox", [x, y, viewWidth, viewHeight].join(" "));
    for (const canvas of Object.values(viewed)) showPart(canvas, [x / width, y / height, viewWidth / width, viewHeight / height]);
  };
  showImage(viewed.image, source);
  showImage(viewed.heat, heat);
  const panel = switches(empty, update, Boolean(heat));
  const frame = el("div", {class: "viewer-frame"}, viewed.image, viewed.heat, node);
  frame.style.aspectRatio = width + " / " + height;
  frame.style.setProperty("--ratio", width / height);
  update();
  return {node: el("div", {class: "viewer"}, frame, panel.node), toggle: panel.toggle};
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
