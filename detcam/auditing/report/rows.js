// The cases that the page knows: rows of the files that are loaded, as objects.

const items = [], byId = new Map();
let loadedFiles = 0;
const collator = new Intl.Collator("en");
const TEXT_FIELDS = ["type", "verdict", "evidence_kind", "evidence_location", "background_type", "proposal", "method", "sentence"];

function addRows({columns, sparse, texts, images}) {
  for (const image of images) image.lower = image.file_name.toLocaleLowerCase();
  const classes = texts.class;
  const text = (name, row) => texts[name][columns[name][row]] || null;
  for (let row = 0; row < columns.id.length; row++) {
    const image = images[columns.image[row]], [label, name] = classes[columns.class[row]];
    const item = {
      id: columns.id[row], image, image_id: image.image_id, file_name: image.file_name, image_size_hw: image.image_size_hw,
      label, name, nameRank: 0, score: columns.score[row], delta_ap: columns.delta_ap[row],
      is_false_positive: columns.is_false_positive[row] === 1, box_xyxy: columns.box_xyxy[row], ground_truth: groundTruth(columns.ground_truth[row], classes),
      type: null, verdict: null, evidence_kind: null, evidence_location: null, background_type: null, proposal: null, method: null, sentence: null,
      effect: sparse.effect[row], trust: sparse.trust[row], group: sparse.group[row] ?? null, thumbnail: sparse.thumbnail[row], detail: sparse.detail[row],
    };
    for (const field of TEXT_FIELDS) item[field] = text(field, row);
    items.push(item);
    byId.set(item.id, item);
  }
}

function groundTruth(row, classes) {
  if (!row) return null;
  const [number, known, iou, annotation_id, box_xyxy] = row, [label, name] = classes[number];
  return {box_xyxy, label, name, iou, annotation_id, is_known: known === 1};
}

// Numbers by which names are sorted: comparing texts in a language takes much longer than comparing numbers.
function rankNames() {
  const ranks = (names) => new Map([...new Set(names)].sort(collator.compare).map((name, index) => [name, index]));
  const files = ranks(items.map((item) => item.file_name)), names = ranks(items.map((item) => item.name));
  for (const item of items) {
    item.image.rank = files.get(item.file_name);
    item.nameRank = names.get(item.name);
  }
}

// Loads the files of rows up to a number, one after the other.
async function loadRows(end) {
  try {
    while (loadedFiles < end) {
      const name = "rows-" + loadedFiles;
      addRows(await load(name));
      contents.delete(name);
      loadedFiles++;
    }
  } finally {
    rankNames();
  }
}

const countRows = (first, end) => start.rows.slice(first, end).reduce((sum, rows) => sum + rows, 0);
const unlisted = () => countRows(loadedFiles, start.rows.length);
// The explanation is in a file of its own.
const whole = async (row) => (isKnown(row.detail) ? {...row, ...(await loadDetail(row.detail, row.id))} : row);
