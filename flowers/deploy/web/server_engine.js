// Asks the server that the page comes from.
import { openPhoto, preview } from "./photo.js";

const PAUSES = [500, 1000, 2000]; // milliseconds before each new try
const MAX_PAUSE = 10_000; // of what a server may ask for
const BUSY = [502, 503, 504]; // the last two also from a proxy
const KEY = "flowers token";

let token = null;
let isAsking = null; // the promise of a token, while the page asks for it
let retries = PAUSES.length; // none after a photo has failed after all of them, until the server answers again

function remembered() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null; // the browser keeps nothing for this page
  }
}

function remember(given) {
  token = given;
  try {
    sessionStorage.setItem(KEY, given);
  } catch {
    // It is asked for again after a reload.
  }
}

// The token in the address never reaches a server, and does not stay in the address.
function takeToken() {
  const given = /^#token=(.+)$/.exec(location.hash)?.[1];
  if (!given) return false;
  history.replaceState(null, "", location.pathname + location.search);
  try {
    remember(decodeURIComponent(given));
  } catch {
    remember(given); // it has a percent sign of its own
  }
  return true;
}

const wait = (milliseconds, signal) => new Promise((resolve, reject) => {
  setTimeout(resolve, milliseconds);
  signal?.addEventListener("abort", () => reject(signal.reason), { once: true });
});

async function failure(response) {
  const { error } = await response.json().catch(() => ({}));
  return new Error(error || `the server answers ${response.status}`);
}

// Returns the answer to a request. Tries again when the server is busy or gone, and asks for the token where it must.
async function request(path, askToken, options = {}) {
  for (let tries = 0; ; tries += 1) {
    const sent = token;
    const headers = { ...options.headers, ...(sent === null ? {} : { Authorization: `Bearer ${sent}` }) };
    const response = await fetch(new URL(`../${path}`, import.meta.url), { ...options, headers }).catch(() => null);
    options.signal?.throwIfAborted();
    if (response?.ok) {
      retries = PAUSES.length;
      return response;
    }
    if (response?.status === 401) {
      if (sent === token) isAsking ??= askToken(sent !== null).then(remember).finally(() => (isAsking = null));
      await isAsking;
      options.signal?.throwIfAborted();
      tries = -1;
    } else if (response && !BUSY.includes(response.status)) throw await failure(response);
    else if (tries >= retries) {
      retries = 0;
      throw new Error(response ? "the server is busy: try again later" : "the server does not answer: try again later");
    } else {
      const wanted = Number.parseFloat(response?.headers.get("Retry-After"));
      await wait(wanted >= 0 ? Math.min(1000 * wanted, MAX_PAUSE) : PAUSES[tries], options.signal);
    }
  }
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

export async function load(askToken) {
  if (!takeToken()) token = remembered();
  // Who opens the page first, and then follows the address with the token, stays on the page.
  addEventListener("hashchange", () => takeToken() && location.reload());
  const { classes, rejects, confidence, explains, limits } = await (await request("model", askToken)).json();

  async function send(path, file, signal) {
    if (!file.size) throw new Error("empty");
    if (file.size > limits.request_bytes) {
      throw new Error(`${megabytes(file.size)}, over the limit of ${megabytes(limits.request_bytes)}`);
    }
    const body = await file.arrayBuffer().catch(() => Promise.reject(new Error("cannot be opened")));
    const headers = { "Content-Type": "application/octet-stream" };
    return request(path, askToken, { method: "POST", body, headers, signal });
  }

  let turn = Promise.resolve(); // one bitmap at a time in memory
  function thumbnail(file) {
    turn = turn.then(async () => {
      const bitmap = await openPhoto(file, limits.pixels);
      const small = await preview(bitmap);
      bitmap.close();
      return small;
    }).catch(() => null); // the server reads more kinds of images than a browser
    return turn;
  }

  async function classify(file, signal) {
    const [response, small] = await Promise.all([send("predict", file, signal), thumbnail(file)]);
    const [answer] = (await response.json()).predictions;
    if (answer.error !== null) throw new Error(answer.error);
    return {
      preview: small,
      probabilities: classes.map((name) => answer.probabilities[name]),
      strangeness: answer.strangeness,
      isRejected: answer.rejected === true,
      abstains: answer.abstains === true,
    };
  }

  return {
    classes,
    rejects,
    confidence,
    types: ["image/jpeg", "image/png", "image/webp", "image/bmp", "image/gif", "image/tiff"],
    privacy: "Photos are sent to this server and are not stored.",
    parallel: 4, // the server answers those that wait together
    classify,
    explain: explains ? async (file) => (await send("explain", file)).blob() : null,
  };
}
