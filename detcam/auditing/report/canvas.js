// Images drawn in canvases, which let go of their pixels. The browser keeps the pixels of the last thousand images that were
// in view, also after the page has removed them.

const drawings = new WeakMap(); // by canvas: the file, its pixels, and the part of them that is shown
const WHOLE = [0, 0, 1, 1];

const imageCanvas = (attributes) => el("canvas", {...attributes, width: 0, height: 0, "aria-hidden": "true"});

// Shows an image file in a canvas, in place of what it shows; nothing without a file. Only an image whose pixels are kept
// can be shown in part.
function showImage(canvas, source, keepsPixels = true) {
  releaseImage(canvas);
  const drawing = {source, pixels: null, part: WHOLE};
  drawings.set(canvas, drawing);
  if (!source) return;
  const image = new Image();
  image.addEventListener("load", async () => {
    const pixels = await createImageBitmap(image);
    image.removeAttribute("src");
    if (drawings.get(canvas) !== drawing) {
      pixels.close();
      return;
    }
    drawing.pixels = pixels;
    canvas.width = pixels.width;
    canvas.height = pixels.height;
    redraw(canvas);
    if (keepsPixels) return;
    pixels.close();
    drawing.pixels = null;
  });
  image.src = source;
}

// Shows a part of the image: left, top, width and height as shares of the whole.
function showPart(canvas, part) {
  drawings.get(canvas).part = part;
  redraw(canvas);
}

function redraw(canvas) {
  const {pixels, part: [x, y, width, height]} = drawings.get(canvas);
  if (!pixels) return;
  const source = [x * pixels.width, y * pixels.height, width * pixels.width, height * pixels.height];
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.drawImage(pixels, ...source, 0, 0, canvas.width, canvas.height);
}

function releaseImage(canvas) {
  const drawing = drawings.get(canvas);
  if (drawing && drawing.pixels) drawing.pixels.close();
  drawings.delete(canvas);
  canvas.width = canvas.height = 0;
}
