// The image viewer: all 8 or 16 bits of an image, with zoom, pan, window and level, and invert; of a volume slice by slice.
//
// A browser's own decoder keeps 8 bits of each channel. So the PNG is read here: `api/console/pictures.py` writes its rows
// unfiltered, and nothing but that is taken. Window and level are in the image's own values (DICOM PS3.3 C.11.2.1.2).

const BIG = 12; // as many screen pixels a pixel at most

async function decoded(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(answer.status === 401 ? "You are signed out." : "The image cannot be shown.");
  const [at, count] = (answer.headers.get("X-Overread-Slice") ?? "0/1").split("/").map(Number);
  const bytes = new Uint8Array(await answer.arrayBuffer());
  const view = new DataView(bytes.buffer);
  const packed = [];
  let width, height, depth, kind;
  for (let at = 8; at < bytes.length; ) {
    const length = view.getUint32(at);
    const name = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    if (name === "IHDR") {
      [width, height] = [view.getUint32(at + 8), view.getUint32(at + 12)];
      [depth, kind] = [bytes[at + 16], bytes[at + 17]];
    }
    if (name === "IDAT") packed.push(bytes.subarray(at + 8, at + 8 + length));
    at += 12 + length;
  }
  const stream = new Blob(packed).stream().pipeThrough(new DecompressionStream("deflate"));
  const rows = new Uint8Array(await new Response(stream).arrayBuffer());
  const channels = kind === 2 ? 3 : 1;
  const each = depth / 8;
  const stride = width * channels * each;
  const values = depth === 16 ? new Uint16Array(width * height * channels) : new Uint8Array(width * height * channels);
  for (let row = 0, to = 0; row < height; row++) {
    const start = row * (stride + 1);
    if (rows[start] !== 0) throw new Error("The image cannot be shown."); // a filter that we do not write
    for (let at = start + 1; at < start + 1 + stride; at += each) values[to++] = each === 2 ? (rows[at] << 8) | rows[at + 1] : rows[at];
  }
  return { width, height, channels, values, most: 2 ** depth - 1, at, count };
}

// A heat map is grey; over the image it is orange, and the clearer the less the network looked there.
async function warmed(url) {
  const picture = new Image();
  picture.src = url;
  await picture.decode();
  const made = new OffscreenCanvas(picture.naturalWidth, picture.naturalHeight);
  const context = made.getContext("2d");
  context.drawImage(picture, 0, 0);
  const heat = context.getImageData(0, 0, made.width, made.height);
  for (let at = 0; at < heat.data.length; at += 4) heat.data.set([255, 120, 0, heat.data[at] ** 2 / 500], at);
  context.putImageData(heat, 0, 0);
  return made;
}

function extent(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, Math.max(high, low + 1)];
}

class Viewer {
  constructor(section, image) {
    this.image = image;
    this.sources = section.dataset;
    this.at = image.at;
    this.slices = new Map([[image.at, Promise.resolve(image)]]);
    this.heats = new Map();
    this.slider = section.querySelector(".slices input");
    this.slider.max = image.count - 1;
    this.slider.value = image.at;
    this.slider.parentElement.hidden = image.count === 1;
    this.canvas = section.querySelector("canvas");
    this.says = section.querySelector(".says");
    this.inputs = Object.fromEntries([...section.querySelectorAll("[data-set]")].map((input) => [input.dataset.set, input]));
    this.buttons = Object.fromEntries([...section.querySelectorAll("[data-do]")].map((button) => [button.dataset.do, button]));
    [this.low, this.high] = extent(image.values);
    this.inverted = false;
    this.picture = new OffscreenCanvas(image.width, image.height);
    this.inputs.window.min = 1;
    this.inputs.window.max = this.inputs.level.max = image.most;
    this.inputs.level.min = 0;
    this.listen();
    this.reset();
    new ResizeObserver(() => this.fit()).observe(this.canvas);
  }

  listen() {
    const { canvas } = this;
    for (const input of Object.values(this.inputs)) input.addEventListener("input", () => this.paint());
    this.slider.addEventListener("input", () => this.turn(Number(this.slider.value)));
    this.buttons.in.addEventListener("click", () => this.zoom(1.25));
    this.buttons.out.addEventListener("click", () => this.zoom(0.8));
    this.buttons.fit.addEventListener("click", () => this.reset());
    this.buttons.invert.addEventListener("click", () => this.invert());
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      // Through a volume, as on a PACS; with Ctrl it zooms there too.
      if (this.image.count > 1 && !event.ctrlKey) this.turn(this.at + Math.sign(event.deltaY));
      else this.zoom(event.deltaY < 0 ? 1.1 : 1 / 1.1, event.offsetX * devicePixelRatio, event.offsetY * devicePixelRatio);
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      event.preventDefault();
      canvas.focus();
    });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointermove", (event) => {
      if (!event.buttons) return;
      // The right button, or shift: window across, level up and down, as on a PACS.
      if (event.buttons === 2 || event.shiftKey) this.adjust(event.movementX, -event.movementY);
      else this.pan(event.movementX * devicePixelRatio, event.movementY * devicePixelRatio);
    });
    document.addEventListener("keydown", (event) => this.press(event));
  }

  press(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest("textarea, select, input")) return;
    const step = 40 * devicePixelRatio;
    const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (event.key in moves && event.target === this.canvas) this.pan(...moves[event.key]);
    else if (event.key === ",") this.turn(this.at - 1);
    else if (event.key === ".") this.turn(this.at + 1);
    else if (event.key === "+" || event.key === "=") this.zoom(1.25);
    else if (event.key === "-") this.zoom(0.8);
    else if (event.key === "0") this.reset();
    else if (event.key === "i") this.invert();
    else if (event.key === "[") this.adjust(-10, 0);
    else if (event.key === "]") this.adjust(10, 0);
    else if (event.key === "{") this.adjust(0, -10);
    else if (event.key === "}") this.adjust(0, 10);
    else return;
    event.preventDefault();
  }

  // Show another slice, and the heat map's with it; each is fetched once, and the one asked for last is shown.
  async turn(to) {
    this.at = Math.min(Math.max(to, 0), this.image.count - 1);
    this.slider.value = this.at;
    const at = this.at;
    try {
      const [image, heat] = await Promise.all([this.slice(at), this.warmth(at)]);
      if (this.at !== at) return;
      [this.image, this.heat] = [image, heat];
      this.paint();
    } catch (error) {
      this.says.textContent = error.message;
    }
  }

  slice(at) {
    if (!this.slices.has(at)) this.slices.set(at, decoded(`${this.sources.viewer}?slice=${at}`));
    return this.slices.get(at);
  }

  warmth(at) {
    if (!this.sources.heat) return null;
    if (!this.heats.has(at)) this.heats.set(at, warmed(`${this.sources.heat}&slice=${at}`));
    return this.heats.get(at);
  }

  reset() {
    this.inputs.window.value = this.high - this.low;
    this.inputs.level.value = (this.high + this.low) / 2;
    this.fit();
    this.paint();
  }

  fit() {
    const { canvas, image } = this;
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * devicePixelRatio));
    canvas.height = Math.max(1, Math.round(canvas.clientHeight * devicePixelRatio));
    this.scale = Math.min(canvas.width / image.width, canvas.height / image.height);
    this.x = (canvas.width - image.width * this.scale) / 2;
    this.y = (canvas.height - image.height * this.scale) / 2;
    this.draw();
  }

  zoom(factor, x = this.canvas.width / 2, y = this.canvas.height / 2) {
    const fitting = Math.min(this.canvas.width / this.image.width, this.canvas.height / this.image.height);
    const scale = Math.min(Math.max(this.scale * factor, fitting / 2), Math.max(BIG * devicePixelRatio, fitting * 4));
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.draw();
  }

  pan(x, y) {
    this.x += x;
    this.y += y;
    this.draw();
  }

  adjust(window, level) {
    const unit = (this.high - this.low) / 200;
    this.inputs.window.value = Number(this.inputs.window.value) + window * unit;
    this.inputs.level.value = Number(this.inputs.level.value) + level * unit;
    this.paint();
  }

  invert() {
    this.inverted = !this.inverted;
    this.buttons.invert.setAttribute("aria-pressed", String(this.inverted));
    this.paint();
  }

  // Values through window, level and inversion into the 8 bits that a screen shows, by a table of all values there are.
  paint() {
    const { width, height, channels, values, most, at, count } = this.image;
    const [window, level] = [Number(this.inputs.window.value), Number(this.inputs.level.value)];
    const shown = new Uint8ClampedArray(most + 1);
    for (let value = 0; value <= most; value++) {
      const grey = ((value - level) / window + 0.5) * 255;
      shown[value] = this.inverted ? 255 - Math.min(255, Math.max(0, grey)) : grey;
    }
    const made = new ImageData(width, height);
    for (let pixel = 0; pixel < width * height; pixel++) {
      for (let channel = 0; channel < 3; channel++) {
        made.data[pixel * 4 + channel] = shown[values[channels === 3 ? pixel * 3 + channel : pixel]];
      }
      made.data[pixel * 4 + 3] = 255;
    }
    this.picture.getContext("2d").putImageData(made, 0, 0);
    const place = count > 1 ? `slice ${at + 1} of ${count}, ` : "";
    this.says.textContent = `${place}${width} × ${height}, window ${Math.round(window)}, level ${Math.round(level)}${this.inverted ? ", inverted" : ""}`;
    this.draw();
  }

  draw() {
    const context = this.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.setTransform(this.scale, 0, 0, this.scale, this.x, this.y);
    context.drawImage(this.picture, 0, 0);
    if (this.heat) context.drawImage(this.heat, 0, 0, this.image.width, this.image.height);
    this.canvas.dataset.drawn = "yes";
  }
}

for (const section of document.querySelectorAll("[data-viewer]")) {
  if (!section.querySelector("canvas")) continue;
  decoded(section.dataset.viewer)
    .then(async (image) => {
      const viewer = new Viewer(section, image);
      if (!section.dataset.heat) return;
      await viewer.turn(image.at);
      if (viewer.heat) viewer.canvas.dataset.heat = "yes";
    })
    .catch((error) => (section.querySelector(".says").textContent = error.message));
}
