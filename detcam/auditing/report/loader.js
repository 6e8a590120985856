// The data files of the page, which are scripts: a page opened from disk can load no other files. Each hands its content
// to detcamData as JSON text. The headline is in the page itself and is drawn before any file has come.

const start = JSON.parse(document.getElementById("data").textContent);
const MAX_DETAIL_FILES = 4; // files of explanations kept in memory
const contents = new Map(), pending = new Map();
globalThis.detcamData = (name, text) => contents.set(name, JSON.parse(text));

function load(name) {
  if (contents.has(name)) return Promise.resolve(contents.get(name));
  if (!pending.has(name)) pending.set(name, new Promise((resolve, reject) => {
    const script = document.createElement("script");
    const done = () => {
      script.remove();
      pending.delete(name);
      if (contents.has(name)) resolve(contents.get(name));
      else reject(new Error("data/" + name + "-" + start.run + ".js cannot be loaded. The page needs the whole folder of the report."));
    };
    script.addEventListener("load", done);
    script.addEventListener("error", done);
    script.src = "data/" + name + "-" + start.run + ".js";
    document.head.append(script);
  }));
  return pending.get(name);
}

// The explanation of a case, with the ground truth of its image.
async function loadDetail(number, id) {
  const name = "details-" + number, {cases, objects} = await load(name);
  contents.delete(name); // files used last are at the end
  contents.set(name, {cases, objects});
  const kept = [...contents.keys()].filter((each) => each.startsWith("details-"));
  for (const old of kept.slice(0, -MAX_DETAIL_FILES)) contents.delete(old);
  return {...cases[id], objects: objects[cases[id].files.image]};
}

function showError(error) {
  const node = document.getElementById("error");
  node.setAttribute("role", "alert");
  node.textContent = error.message;
  node.hidden = false;
}

document.getElementById("subject").textContent = start.model + " on " + start.annotations;
{
  const title = document.createElement("h1"), lead = document.createElement("p");
  lead.className = "lead";
  [title.textContent, lead.textContent] = [start.headline[0], start.headline.slice(1).join(" ")];
  document.getElementById("headline").append(title, lead);
  if (location.hash.startsWith("#case=")) document.getElementById("overview").hidden = true;
}
const rowFiles = start.rows.slice(0, start.start).map((_, index) => load("rows-" + index));
let data;
try {
  data = await load("summary");
} catch (error) {
  showError(error);
  return;
}
