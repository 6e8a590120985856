// The cards of the list. Cards that leave the list are used again: thousands of new ones would fill the memory faster than
// the browser cleans it up.

const cardParts = new WeakMap(), spare = [];

function thumbnail(path) {
  const source = link(path);
  if (!source) return el("span", {class: "thumbnail none"}, "no image");
  return el("img", {class: "thumbnail", src: source, alt: "", loading: "lazy", decoding: "async", width: 320, height: 240});
}

// Thumbnails of cards are drawn when they come near the window, and let go when they leave it.
const thumbnails = new WeakMap();
const near = new IntersectionObserver((entries) => {
  for (const {target, isIntersecting} of entries) {
    if (isIntersecting) showImage(target, thumbnails.get(target), false);
    else releaseImage(target);
  }
}, {rootMargin: "300px"});

function newCard() {
  const part = {
    image: imageCanvas({class: "thumbnail"}), name: el("b", {}, ""), score: el("span", {class: "number"}, ""),
    tags: [0, 1, 2].map(() => el("span", {}, "")), sentence: el("span", {class: "sentence"}, ""), file: el("span", {class: "file"}, ""),
  };
  part.link = el("a", {class: "case-card"}, part.image,
    el("span", {class: "case-text"}, el("span", {class: "case-name"}, part.name, part.score), el("span", {class: "facts"}, part.tags), part.sentence, part.file));
  const node = el("li", {}, part.link);
  cardParts.set(node, part);
  return node;
}

// A list item for a case, which is the one with this index of so many.
function cardOf(item, index, size) {
  const node = spare.pop() || newCard(), part = cardParts.get(node);
  // Whole images in place of missing thumbnails would take megabytes each.
  node.className = item.thumbnail ? "" : "plain";
  part.image.hidden = !item.thumbnail;
  if (item.thumbnail) {
    thumbnails.set(part.image, link(item.thumbnail));
    near.observe(part.image);
  }
  const tags = [isUnlabeled ? null : item.type, item.method && item.verdict, item.background_type];
  part.tags.forEach((tag, number) => {
    const kind = tags[number];
    tag.hidden = !kind;
    tag.className = "tag " + (kind ? kebab(kind) : "");
    tag.firstChild.data = kind ? VERDICT_TEXTS[kind] || kind : "";
  });
  part.name.firstChild.data = item.name;
  part.score.firstChild.data = isUnlabeled && isKnown(item.trust) ? "trust " + digits(item.trust, 2) : score(item.score);
  part.sentence.firstChild.data = item.sentence || TYPE_TEXTS[item.type];
  part.file.firstChild.data = item.file_name;
  part.link.setAttribute("href", caseLink(item.id));
  part.link.dataset.id = item.id;
  node.setAttribute("aria-setsize", size);
  node.setAttribute("aria-posinset", index + 1);
  return node;
}

function recycle(node) {
  node.remove();
  const {image} = cardParts.get(node);
  near.unobserve(image);
  releaseImage(image);
  spare.push(node);
}
