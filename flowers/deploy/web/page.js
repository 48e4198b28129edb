"use strict";
const MAX_BARS = 10;
const MAX_NAMES = 20;
const BROKEN = "The model cannot be loaded";
const byId = (id) => document.getElementById(id);

let engine = null; // answers for photos; until it is loaded, they wait
let broken = null; // why there is no engine
let isWorking = false;
let shown = null; // the answer that is shown
let round = new AbortController(); // another one after each "Clear"
const pending = []; // photos: {name, file}, or {name, reason} for what is none
const answers = []; // photos with {preview, probabilities, strangeness, isRejected, abstains}, or with {reason}

function element(name, text, properties = {}) {
  const made = Object.assign(document.createElement(name), properties);
  if (text !== undefined) made.textContent = text;
  return made;
}

// As flowers.runtime.text.one_line: no control characters, and no marks that reverse the order of a text.
const UNPRINTABLE = /[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]/gu;
const oneLine = (text) => text.replace(UNPRINTABLE, (found) => `\\u${found.charCodeAt(0).toString(16).padStart(4, "0")}`);
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const counted = (count) => `${count.toLocaleString("en")} ${count === 1 ? "photo" : "photos"}`;
const className = (number) => oneLine(engine.classes[number]);
const best = (answer) => answer.probabilities.indexOf(Math.max(...answer.probabilities));

function say(text, isBad = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("bad", isBad);
}

const verdict = (answer) => (answer.isRejected ? "None of these" : answer.abstains ? "Not sure" : className(best(answer)));

function describe(answer) {
  if (answer.reason) return `${oneLine(answer.name)}: ${answer.reason}`;
  const guess = `${className(best(answer))}, ${percent(answer.probabilities[best(answer)])}.`;
  return answer.isRejected || answer.abstains ? `${verdict(answer)}. Most like ${guess}` : guess;
}

async function start() {
  if (location.protocol === "file:") {
    say("This page needs a web server: run python -m http.server in its folder and open http://localhost:8000", true);
    return;
  }
  for (const id of ["choose", "camera"]) {
    byId(id).addEventListener("change", ({ target }) => {
      add([...target.files]);
      target.value = ""; // the same file can be chosen again
    });
  }
  document.addEventListener("paste", ({ target, clipboardData }) => {
    if (target !== byId("token")) add([...clipboardData.files]);
  });
  for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault(); // or the browser would leave the page and open the photo
      byId("drop").classList.toggle("over", name === "dragenter" || name === "dragover");
      if (name === "drop") add(dropped(event.dataTransfer));
    });
  }
  byId("save").addEventListener("click", save);
  byId("clear").addEventListener("click", clear);
  byId("explain").addEventListener("click", explain);
  say("Loading the model…");
  try {
    engine = await (await import("./engine.js")).load(askToken);
  } catch (error) {
    broken = `The model cannot be loaded: ${oneLine(error.message)}`;
    byId("progress").hidden = true;
    say(broken, true);
    return;
  }
  const names = engine.classes.slice(0, MAX_NAMES).map((_, number) => className(number)).join(", ");
  const more = engine.classes.length > MAX_NAMES ? ` and ${engine.classes.length - MAX_NAMES} more` : "";
  const others = engine.rejects ? "It answers “none of these” for most photos of other things."
    : "It answers with one of them for every photo, also for a photo of something else.";
  const doubt = engine.confidence === null ? "" : ` Below a probability of ${percent(engine.confidence)}, it says “not sure”.`;
  byId("about").textContent = `It knows ${names}${more}. ${others}${doubt} ${engine.privacy}`;
  byId("choose").accept = engine.types.join();
  say("Ready.");
  work();
}

// Resolves to the token of the server, which the user types.
function askToken(isWrong) {
  say(isWrong ? "The token is not the one of this server." : "This server needs its token.", isWrong);
  byId("login").hidden = false;
  byId("token").focus();
  return new Promise((resolve) => {
    byId("login").onsubmit = (event) => {
      event.preventDefault();
      byId("login").hidden = true;
      resolve(byId("token").value);
      byId("token").value = "";
      byId("choose").focus();
    };
  });
}

function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry());
  return [...transfer.files].map((file) => {
    const isFolder = entries.some((entry) => entry?.isDirectory && entry.name === file.name);
    return isFolder ? { name: file.name, reason: "a folder: drop the photos in it" } : file;
  });
}

function add(files) {
  if (!files.length) {
    say("There is no photo in it: choose, drop or paste image files.", true);
    return;
  }
  if (broken) {
    say(broken, true);
    return;
  }
  for (const file of files) pending.push(file instanceof File ? { name: file.name, file } : file);
  byId("progress").hidden = false;
  say(engine ? `Classifying ${counted(pending.length)}…` : `Loading the model for ${counted(pending.length)}…`);
  work();
}

// Classifies the photos that wait, a few at a time, and shows the answers in the order of the photos.
async function work() {
  if (!engine || isWorking || !pending.length) return;
  isWorking = true;
  const asked = [];
  while (pending.length || asked.length) {
    while (pending.length && asked.length < engine.parallel) asked.push(classify(pending.shift(), round.signal));
    byId("progress").max = answers.length + asked.length + pending.length;
    byId("progress").value = answers.length;
    const answer = await asked.shift();
    if (answer) receive(answer);
  }
  isWorking = false;
  finish();
}

// Returns the answer, with the reason if there is none. null after "Clear".
async function classify(photo, signal) {
  let answer;
  try {
    answer = photo.reason ? photo : { ...photo, ...await engine.classify(photo.file, signal) };
  } catch (error) {
    answer = { ...photo, reason: oneLine(error.message || String(error)) };
  }
  return signal.aborted ? null : answer;
}

function receive(answer) {
  if (answer.preview) answer.preview = URL.createObjectURL(answer.preview);
  if (!engine.explain) answer.file = null;
  answers.push(answer);
  byId("rows").append(row(answer));
  byId("answers").hidden = answers.length < 2;
}

function finish() {
  byId("progress").hidden = true;
  if (!answers.length) return; // all were cleared
  const failed = answers.filter((answer) => answer.reason).length;
  show(answers.at(-1));
  if (answers.length > 1) say(`${counted(answers.length)}: ${answers.length - failed} classified, ${failed} failed.`);
}

function row(answer) {
  const made = element("tr");
  const open = element("button", undefined, { type: "button" });
  if (answer.preview) open.append(element("img", undefined, { src: answer.preview, alt: "" }));
  open.append(element("span", oneLine(answer.name)));
  open.addEventListener("click", () => {
    show(answer);
    byId("answer").scrollIntoView({ block: "nearest" });
  });
  const photo = element("th", undefined, { scope: "row" });
  photo.append(open);
  made.append(photo);
  if (answer.reason) made.append(element("td", answer.reason, { colSpan: 2, className: "bad" }));
  else {
    made.append(element("td", answer.isRejected ? "none of these" : answer.abstains ? "not sure" : className(best(answer))));
    made.append(element("td", percent(answer.probabilities[best(answer)])));
  }
  answer.button = open;
  return made;
}

function show(answer) {
  shown = answer;
  for (const each of answers) each.button.setAttribute("aria-pressed", String(each === answer));
  say(describe(answer), Boolean(answer.reason));
  byId("answer").hidden = Boolean(answer.reason);
  if (answer.reason) return;
  byId("preview").hidden = !answer.preview;
  byId("preview").src = answer.preview ?? "";
  byId("preview").alt = oneLine(answer.name);
  byId("label").textContent = verdict(answer);
  byId("name").textContent = oneLine(answer.name);
  const ordered = [...engine.classes.keys()].sort((a, b) => answer.probabilities[b] - answer.probabilities[a]);
  byId("bars").replaceChildren(...ordered.slice(0, MAX_BARS).map((number) => bar(number, answer.probabilities[number])));
  showHeatMap(answer);
}

function showHeatMap(answer) {
  const isOpen = Boolean(answer.isExplained && answer.heatMap);
  byId("explain").hidden = !engine.explain;
  byId("explain").textContent = isOpen ? "Hide heat map" : "Show heat map";
  byId("explain").setAttribute("aria-expanded", String(isOpen));
  byId("explanation").hidden = !isOpen;
  if (!isOpen) return;
  byId("heat").src = answer.heatMap;
  byId("heat").alt = `${oneLine(answer.name)}, and its heat map`;
  byId("reading").textContent = `Red are the parts of the photo that speak most for ${className(best(answer))}.`;
}

async function explain() {
  const answer = shown;
  answer.isExplained = !answer.isExplained;
  if (answer.isExplained && !answer.heatMap) {
    say("Making the heat map…");
    try {
      answer.heatMap ??= URL.createObjectURL(await engine.explain(answer.file));
    } catch (error) {
      answer.isExplained = false;
      if (answer === shown) say(`${oneLine(answer.name)}: ${oneLine(error.message)}`, true);
      return;
    }
    if (answer === shown && answer.isExplained) say("The heat map is below the photo.");
  }
  if (answer === shown) showHeatMap(answer);
}

function bar(number, share) {
  const track = element("div", undefined, { className: "track" });
  const fill = element("div", undefined, { className: "fill" });
  fill.style.width = `${100 * share}%`;
  track.append(fill);
  const made = element("li");
  made.append(element("span", className(number)), element("span", percent(share)), track);
  return made;
}

function clear() {
  for (const url of answers.flatMap(({ preview, heatMap }) => [preview, heatMap])) if (url) URL.revokeObjectURL(url);
  answers.length = 0;
  pending.length = 0;
  shown = null;
  round.abort();
  round = new AbortController();
  byId("rows").replaceChildren();
  byId("answer").hidden = true;
  byId("answers").hidden = true;
  byId("choose").focus();
  say("Ready.");
}

// As flowers.runtime.text.to_csv: a spreadsheet must not take a name for a formula.
function cell(value) {
  const text = String(value ?? "");
  const safe = typeof value === "string" && /^'*[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

// The columns of flowers.predict.
function csv() {
  const rejection = engine.rejects ? ["strangeness", "none_of_these"] : [];
  const ofClasses = engine.classes.map((name) => `probability_${name}`);
  const lines = [["path", "class", "probability", ...ofClasses, ...rejection, "abstain", "reason"]];
  for (const answer of answers) {
    if (answer.reason) {
      const none = engine.rejects ? ["", false] : [];
      lines.push([answer.name, "", "", ...engine.classes.map(() => ""), ...none, true, answer.reason]);
      continue;
    }
    const shares = answer.probabilities.map((share) => share.toFixed(6));
    const strangeness = answer.strangeness === null ? "" : Number(answer.strangeness.toFixed(6)); // null: not finite
    const rejected = engine.rejects ? [strangeness, answer.isRejected] : [];
    const number = best(answer);
    lines.push([answer.name, engine.classes[number], shares[number], ...shares, ...rejected, Boolean(answer.abstains), ""]);
  }
  return lines.map((line) => `${line.map(cell).join(",")}\n`).join("");
}

function save() {
  const link = element("a", undefined, {
    href: URL.createObjectURL(new Blob([csv()], { type: "text/csv" })), download: "answers.csv",
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

start();
