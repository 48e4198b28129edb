// Reads and classifies photos in a thread of its own, so that the page stays responsive.
import * as ort from "../ort/ort.wasm.min.js";

const PREVIEW = 480;  // longest side in pixels
const MAX_MARKERS = 2000;  // of a JPEG file before its size
const here = (path) => new URL(`../${path}`, import.meta.url).href;

async function fetched(path, query = "", options = {}) {
  const response = await fetch(here(path + query), options).catch(() => ({ status: "missing, or not the one in settings.json" }));
  if (!response.ok) throw new Error(`${path}: ${response.status}`);
  return response;
}

async function load() {
  const settings = await (await fetched("settings.json", "", { cache: "no-cache" })).json();
  // The digest keeps the browser from combining an old model in its cache with new class names.
  const [model, binary] = await Promise.all([
    fetched("model.onnx", `?${encodeURIComponent(settings.model)}`, { integrity: `sha256-${settings.model}` }),
    fetched("ort/ort-wasm-simd-threaded.wasm"),
  ].map(async (response) => (await response).arrayBuffer()));
  ort.env.wasm.wasmBinary = binary;
  ort.env.wasm.wasmPaths = { mjs: here("ort/ort-wasm-simd-threaded.js") };
  // Threads need a server that isolates the page (COOP and COEP); a plain one does not.
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
  // The export has optimized the graph: without a second time, the first answer comes sooner.
  const options = { executionProviders: ["wasm"], graphOptimizationLevel: "disabled" };
  const session = await ort.InferenceSession.create(new Uint8Array(model), options);
  postMessage({ classes: settings.classes, rejects: settings.threshold !== null });
  return { settings, session };
}

// Width and height from the header of a file: a photo that is too large is never decoded.
async function headerSize(file) {
  const view = async (start, length) => {
    const bytes = new Uint8Array(length);  // zeros after the end of the file
    bytes.set(new Uint8Array(await file.slice(start, start + length).arrayBuffer()));
    return new DataView(bytes.buffer);
  };
  const head = await view(0, 34);
  const text = (start, end) => String.fromCharCode(...new Uint8Array(head.buffer).slice(start, end));
  const u24 = (start) => head.getUint16(start, true) + (head.getUint8(start + 2) << 16);
  if (text(0, 8) === "\x89PNG\r\n\x1a\n") return [head.getUint32(16), head.getUint32(20)];
  if (/^GIF8[79]a$/.test(text(0, 6))) return [head.getUint16(6, true), head.getUint16(8, true)];
  if (text(0, 2) === "BM") {
    if (head.getUint32(14, true) === 12) return [head.getUint16(18, true), head.getUint16(20, true)];
    return [head.getInt32(18, true), Math.abs(head.getInt32(22, true))];
  }
  if (text(0, 4) === "RIFF" && text(8, 12) === "WEBP") {
    const kind = text(12, 16);
    if (kind === "VP8X") return [u24(24) + 1, u24(27) + 1];
    if (kind === "VP8L") return [(head.getUint32(21, true) & 0x3fff) + 1, ((head.getUint32(21, true) >> 14) & 0x3fff) + 1];
    return [head.getUint16(26, true) & 0x3fff, head.getUint16(28, true) & 0x3fff];
  }
  if (text(0, 3) === "\xff\xd8\xff") {
    for (let at = 2, count = 0; at < file.size && count < MAX_MARKERS; count += 1) {
      const marker = await view(at, 9);
      if (marker.getUint8(0) !== 0xff) break;
      const code = marker.getUint8(1);
      const isFrame = code >= 0xc0 && code <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(code);
      if (isFrame) return [marker.getUint16(7), marker.getUint16(5)];
      at += code === 0xff ? 1 : code === 0x01 || (code >= 0xd0 && code <= 0xd8) ? 2 : 2 + marker.getUint16(2);
    }
    return [0, 0];
  }
  if (!file.size) throw new Error("empty");
  const isHeic = text(4, 8) === "ftyp" && /^(hei|hev|mif1|msf1)/.test(text(8, 12));
  const isTiff = /^(II\*\0|MM\0\*)/.test(text(0, 4));
  if (isHeic || isTiff) throw new Error(`${isHeic ? "HEIC" : "TIFF"} is not supported: save the photo as JPEG or PNG`);
  throw new Error("not a JPEG, PNG, WebP, BMP or GIF image");
}

// Returns the photo upright, as RGB on white: the first frame of an animation, with the pixels that are in the file.
async function decode(file, settings) {
  const [fileWidth, fileHeight] = await headerSize(file);
  if (fileWidth * fileHeight > settings.max_pixels) {
    const limit = settings.max_pixels.toLocaleString("en");
    throw new Error(`${fileWidth} x ${fileHeight} pixels, over the limit of ${limit}`);
  }
  let bitmap;
  try {
    const options = { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" };
    bitmap = await createImageBitmap(new Blob([file]), options);
  } catch {
    throw new Error("damaged, or a kind of image that this browser cannot read");
  }
  // The model resizes to settings.resize. Four times as many pixels are enough for it, and of a strip, its center.
  const side = Math.min(bitmap.width, bitmap.height);
  const scale = Math.min(1, 4 * settings.resize / side);
  const [width, height] = [Math.min(bitmap.width, 4 * side), Math.min(bitmap.height, 4 * side)];
  const canvas = new OffscreenCanvas(Math.round(width * scale), Math.round(height * scale));
  draw(canvas, bitmap, (bitmap.width - width) / 2, (bitmap.height - height) / 2, width, height);
  const shrink = Math.min(1, PREVIEW / Math.max(bitmap.width, bitmap.height));
  const small = new OffscreenCanvas(
    Math.max(1, Math.round(bitmap.width * shrink)), Math.max(1, Math.round(bitmap.height * shrink)),
  );
  draw(small, bitmap, 0, 0, bitmap.width, bitmap.height);
  bitmap.close();
  return [canvas, await small.convertToBlob({ type: "image/jpeg", quality: 0.85 })];
}

function draw(canvas, bitmap, left, top, width, height) {
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, left, top, width, height, 0, 0, canvas.width, canvas.height);
}

function toTensor(canvas) {
  const { width, height } = canvas;
  const colors = canvas.getContext("2d").getImageData(0, 0, width, height).data;  // RGBA
  const area = width * height;
  const planes = new Uint8Array(3 * area);
  for (let pixel = 0; pixel < area; pixel += 1) {
    planes[pixel] = colors[4 * pixel];
    planes[area + pixel] = colors[4 * pixel + 1];
    planes[2 * area + pixel] = colors[4 * pixel + 2];
  }
  return new ort.Tensor("uint8", planes, [1, 3, height, width]);
}

async function classify(file, { settings, session }) {
  const [canvas, preview] = await decode(file, settings);
  const outputs = await session.run({ photos: toTensor(canvas) });
  const probabilities = Array.from(outputs.probabilities.data);
  const strangeness = settings.threshold === null ? null : outputs.strangeness.data[0];
  return { preview, probabilities, strangeness, isRejected: strangeness !== null && strangeness > settings.threshold };
}

const loaded = load();
loaded.catch((error) => postMessage({ failure: error.message }));
self.onmessage = async ({ data: file }) => {
  try {
    postMessage(await classify(file, await loaded));
  } catch (error) {
    postMessage({ reason: error.message || String(error) });
  }
};
