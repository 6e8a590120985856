// Routing by the fragment of the address, keyboard shortcuts, and the color theme.

const plainTitle = document.title;
let scrolled = 0;

function requestedId() {
  const match = /^#case=(.*)$/.exec(location.hash);
  if (!match) return null;
  try {
    return decodeURIComponent(match[1]);
  } catch { // malformed address
    return match[1];
  }
}

async function route() {
  const id = requestedId(), item = id === null ? null : byId.get(id);
  const wasList = !$("overview").hidden;
  if (id !== null && wasList) scrolled = scrollY;
  $("overview").hidden = id !== null;
  $("case").hidden = id === null;
  if (item) await showCase(item).catch(showError);
  else if (id !== null) showUnknown(id);
  if (requestedId() !== id) return;
  if (id !== null) {
    scrollTo(0, 0);
    $("case").focus({preventScroll: true});
    return;
  }
  opened = null;
  document.title = plainTitle;
  $("case").replaceChildren();
  Object.values(viewed).forEach(releaseImage);
  const isLink = location.hash.startsWith("#cases");
  restoreFilters();
  keepFilters();
  if (!wasList) {
    scrollTo(0, scrolled);
    if (current) focusCard(current);
  } else if (isLink) {
    $("cases").scrollIntoView();
  }
}

function showUnknown(id) {
  opened = null;
  const rest = unlisted();
  const find = async () => {
    await loadRows(start.rows.length).catch(showError);
    refresh();
    route();
  };
  $("case").replaceChildren(
    el("p", {class: "notice"}, "There is no case " + id + (rest ? " among the listed " + NOUNS + "." : " in this audit.")),
    ...(rest ? [el("button", {type: "button", click: find}, "Look among the other " + count(rest)), " "] : []),
    el("a", {class: "button", href: "#"}, "All cases"));
}

function step(by) {
  if (!shown.length) return;
  const onCard = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.id : null;
  const from = opened ? current : byId.get(onCard);
  const index = from ? position(from) : -1;
  const next = index < 0 ? shown[0] : shown[index + by];
  if (!next) return;
  if (opened) {
    current = next; // the next key can come before the change of the address
    location.hash = caseLink(next.id);
  } else focusCard(next);
}

const KEYS = {
  j: () => step(1), k: () => step(-1),
  ArrowRight: () => opened && step(1), ArrowLeft: () => opened && step(-1),
  "/": () => { location.hash = ""; $("overview").hidden || controls.text.focus(); setTimeout(() => controls.text.focus()); },
  "?": () => $("help").showModal(),
  Escape: () => { if (!$("case").hidden) location.hash = ""; },
};
for (const [name, , key] of LAYERS) KEYS[key] = () => opened && opened.toggle(name);

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  const field = event.target.closest && event.target.closest("input, select, textarea");
  if (field && field.type !== "checkbox") { // the field takes the key; Esc leaves the field
    if (event.key === "Escape") field.blur();
    return;
  }
  const action = KEYS[event.key];
  if (!action) return;
  if (event.key !== "Escape") event.preventDefault();
  action();
}

function showTheme(theme) {
  const dark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").textContent = dark ? "Light" : "Dark";
}

showTheme(stored("theme"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => showTheme(stored("theme")));
$("theme").addEventListener("click", () => showTheme(stored("theme", document.documentElement.dataset.theme === "dark" ? "light" : "dark")));
$("help-button").addEventListener("click", () => $("help").showModal());
document.addEventListener("keydown", onKey);
addEventListener("hashchange", route);
showOverview();
try {
  await Promise.all(rowFiles);
  await loadRows(start.start);
} catch (error) {
  showError(error);
}
showList();
route();
