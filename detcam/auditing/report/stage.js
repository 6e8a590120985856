// The image of a case with what lies over it: heat, outlines, boxes. One SVG, so that zooming is a change of its view.

const LAYERS = [
  ["box", "predicted box", "b"], ["truths", "true boxes", "t"], ["heat", "heatmap", "h"],
  ["evidence", "evidence", "e"], ["control", "control", "c"], ["zoom", "zoom to the box", "z"],
];
const layers = {box: true, truths: true, heat: true, evidence: true, control: false, zoom: false};
let opacity = data.heat.opacity;

// Heat h becomes the colour of h, with opacity h: as detcam's overlays have it.
function heatFilter() {
  const table = (channel) => data.heat.colors.map((color) => (color[channel] / 255).toFixed(4)).join(" ");
  return svg("filter", {id: "heat-colors", "color-interpolation-filters": "sRGB", x: 0, y: 0, width: 1, height: 1},
    svg("feColorMatrix", {in: "SourceGraphic", type: "matrix", values: "0 0 0 0 0  0 0 0 0 0  0 0 0 0 0  1 0 0 0 0", result: "strength"}),
    svg("feComponentTransfer", {in: "SourceGraphic", result: "colors"},
      ["R", "G", "B"].map((name, at) => svg("feFunc" + name, {type: "table", tableValues: table(at)}))),
    svg("feComposite", {in: "colors", in2: "strength", operator: "in"}));
}

function rectangle(box, kind, title) {
  const [left, top, right, bottom] = box;
  const place = {x: left, y: top, width: Math.max(right - left, 0), height: Math.max(bottom - top, 0)};
  return [svg("rect", {...place, class: "casing"}), svg("rect", {...place, class: "line " + kind}, svg("title", {}, title))];
}

const contour = (path, kind) => (path ? [svg("path", {d: path, class: "casing"}), svg("path", {d: path, class: "line " + kind})] : []);

function stage(one) {
  const [height, width] = one.image_size_hw;
  const whole = {x: 0, y: 0, width, height, preserveAspectRatio: "none"};
  const image = images.get(one.image_id), outlines = one.outlines || {};
  const source = link(one.files.image), heat = link(one.files.heatmap);
  const parts = {
    heat: heat ? [svg("image", {...whole, href: heat, filter: "url(#heat-colors)"})] : [],
    truths: trueBoxes(one, image),
    control: contour(outlines.control, "control"),
    evidence: contour(outlines.evidence, "evidence"),
    box: rectangle(one.box_xyxy, one.type === "missed" ? "true concerned" : "predicted", one.name + " " + score(one.score)),
  };
  const words = "Image " + one.file_name + ": " + one.name + ", " + one.type;
  const node = svg("svg", {class: "stage-image", role: "img", "aria-label": words, preserveAspectRatio: "xMidYMid meet"}, svg("defs", {}, heatFilter()),
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
    node.setAttribute("viewBox", (layers.zoom ? zoomed(one) : [0, 0, width, height]).join(" "));
  };
  const panel = switches(empty, update, Boolean(heat));
  node.style.aspectRatio = width + " / " + height;
  update();
  return {node: el("div", {class: "stage"}, node, panel.node), toggle: panel.toggle};
}

function trueBoxes(one, image) {
  const objects = (image && image.objects) || (one.ground_truth ? [one.ground_truth] : []);
  const concerned = one.ground_truth && String(one.ground_truth.annotation_id);
  return objects.flatMap((object) => {
    const kind = object.crowd ? "true crowd" : String(object.annotation_id) === concerned ? "true concerned" : "true";
    return rectangle(object.box_xyxy, kind, "true " + object.name);
  });
}

// The box with as much again around it, in the shape of the image.
function zoomed(one) {
  const [height, width] = one.image_size_hw, [left, top, right, bottom] = one.box_xyxy;
  const scale = Math.min(1, Math.max((right - left) * 2.4 / width, (bottom - top) * 2.4 / height, 24 / Math.max(width, height)));
  const across = width * scale, down = height * scale;
  const inside = (centre, size, most) => Math.min(Math.max(centre - size / 2, 0), most - size);
  return [inside((left + right) / 2, across, width), inside((top + bottom) / 2, down, height), across, down];
}

function switches(empty, update, hasHeat) {
  const boxes = {};
  const toggle = (name, on = !layers[name]) => {
    if (empty.has(name)) return;
    layers[name] = on;
    boxes[name].checked = on;
    update();
  };
  const items = LAYERS.map(([name, words, key]) => {
    boxes[name] = el("input", {type: "checkbox", id: "layer-" + name, "aria-keyshortcuts": key, disabled: empty.has(name),
      change: (event) => toggle(name, event.target.checked)});
    boxes[name].checked = layers[name] && !empty.has(name);
    return el("label", {class: "switch " + (empty.has(name) ? "off" : "")}, boxes[name], el("span", {class: "sample " + name}), words, el("kbd", {}, key));
  });
  const shownOpacity = el("output", {for: "opacity"}, percent(opacity));
  const slider = hasHeat && el("label", {class: "opacity"}, "opacity", el("input", {type: "range", id: "opacity", min: 0, max: 1, step: 0.05, value: opacity,
    input: (event) => { opacity = Number(event.target.value); shownOpacity.textContent = percent(opacity); toggle("heat", true); }}), shownOpacity);
  return {node: el("div", {class: "switches", role: "group", "aria-label": "What is drawn"}, items, slider, hasHeat && heatScale()), toggle};
}

function heatScale() {
  const ramp = el("span", {class: "ramp"});
  const stops = data.heat.colors.map(([r, g, b], at) => `rgba(${r}, ${g}, ${b}, ${(at / (data.heat.colors.length - 1)).toFixed(3)})`);
  ramp.style.backgroundImage = "linear-gradient(to right, " + stops.join(", ") + ")";
  return el("span", {class: "scale"}, "0", ramp, "1");
}
