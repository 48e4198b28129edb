// Reads and classifies photos in a thread of its own, so that the page stays responsive.
import * as ort from "../ort/ort.wasm.min.js";
import { draw, openPhoto, preview } from "./photo.js";

const here = (path) => new URL(`../${path}`, import.meta.url).href; // the folder of the page

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

// The model resizes to settings.resize. Four times as many pixels are enough for it, and of a strip, its center.
function shrink(bitmap, resize) {
  const side = Math.min(bitmap.width, bitmap.height);
  const scale = Math.min(1, 4 * resize / side);
  const [width, height] = [Math.min(bitmap.width, 4 * side), Math.min(bitmap.height, 4 * side)];
  const [left, top] = [(bitmap.width - width) / 2, (bitmap.height - height) / 2];
  return draw(bitmap, [width * scale, height * scale], [left, top, left + width, top + height]);
}

function toTensor(canvas) {
  const { width, height } = canvas;
  const colors = canvas.getContext("2d").getImageData(0, 0, width, height).data; // RGBA
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
  const bitmap = await openPhoto(file, settings.max_pixels);
  const photos = toTensor(shrink(bitmap, settings.resize));
  const small = await preview(bitmap);
  bitmap.close();
  const outputs = await session.run({ photos });
  const probabilities = Array.from(outputs.probabilities.data);
  const strangeness = settings.threshold === null ? null : outputs.strangeness.data[0];
  const isRejected = strangeness !== null && strangeness > settings.threshold;
  return { preview: small, probabilities, strangeness, isRejected };
}

const loaded = load();
loaded.catch((error) => postMessage({ failure: error.message }));
self.onmessage = async ({ data: file }) => {
  try {
    postMessage(await classify(file, await loaded));
  } catch (error) {
    postMessage({ failure: error.message || String(error) });
  }
};
