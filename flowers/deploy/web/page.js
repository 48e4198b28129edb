"use strict";
const MAX_BARS = 10;
const MAX_NAMES = 20;
const BROKEN = "The model cannot be loaded";
const byId = (id) => document.getElementById(id);

let worker;
let classes = null; // until the model is loaded
let rejects = false;
let current = null; // the photo that the worker has
const pending = []; // photos: {name, file}, or {name, reason} for what is none
const answers = []; // photos with {preview, probabilities, strangeness, isRejected}, or with {reason}

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
const className = (number) => oneLine(classes[number]);
const best = (answer) => answer.probabilities.indexOf(Math.max(...answer.probabilities));

function say(text, isBad = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("bad", isBad);
}

function describe(answer) {
  if (answer.reason) return `${oneLine(answer.name)}: ${answer.reason}`;
  const guess = `${className(best(answer))}, ${percent(answer.probabilities[best(answer)])}`;
  return answer.isRejected ? `None of these. Most like ${guess}.` : `${guess}.`;
}

function start() {
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
  document.addEventListener("paste", ({ clipboardData }) => add([...clipboardData.files]));
  for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault(); // or the browser would leave the page and open the photo
      byId("drop").classList.toggle("over", name === "dragenter" || name === "dragover");
      if (name === "drop") add(dropped(event.dataTransfer));
    });
  }
  byId("save").addEventListener("click", save);
  byId("clear").addEventListener("click", clear);
  say("Loading the model…");
  // A worker from a blob keeps the content security policy of this page. One from a file would have none.
  const script = `import ${JSON.stringify(new URL("static/worker.js", location.href).href)};`;
  worker = new Worker(URL.createObjectURL(new Blob([script], { type: "text/javascript" })), { type: "module" });
  worker.onerror = ({ message }) => say(`${BROKEN}: ${message || "a file is missing, or this browser is too old"}`, true);
  worker.onmessage = ({ data }) => {
    if (data.failure) say(`${BROKEN}: ${data.failure}`, true);
    else if (data.classes) begin(data);
    else receive(data);
  };
}

function begin(data) {
  ({ classes, rejects } = data);
  const names = classes.slice(0, MAX_NAMES).map((_, number) => className(number)).join(", ");
  const more = classes.length > MAX_NAMES ? ` and ${classes.length - MAX_NAMES} more` : "";
  const others = rejects ? "It answers “none of these” for most photos of other things."
    : "It answers with one of them for every photo, also for a photo of something else.";
  byId("about").textContent = `It knows ${names}${more}. ${others} ${data.privacy ?? "Photos do not leave this device."}`;
  if (pending.length) next();
  else say("Ready.");
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
  for (const file of files) pending.push(file instanceof File ? { name: file.name, file } : file);
  byId("progress").hidden = false;
  say(classes ? `Classifying ${counted(pending.length)}…` : `Loading the model for ${counted(pending.length)}…`);
  if (classes && !current) next();
}

function next() {
  const total = answers.length + pending.length;
  byId("progress").max = total;
  byId("progress").value = answers.length;
  current = pending.shift() ?? null;
  if (!current) finish();
  else if (current.reason) receive({});
  else worker.postMessage(current.file);
}

function receive(data) {
  if (current.isCleared) {
    next();
    return;
  }
  const answer = Object.assign(current, data, { file: null });
  if (answer.preview) answer.preview = URL.createObjectURL(answer.preview);
  answers.push(answer);
  byId("rows").append(row(answer));
  byId("answers").hidden = answers.length < 2;
  next();
}

function finish() {
  byId("progress").hidden = true;
  if (!answers.length) return; // all were cleared
  const unread = answers.filter((answer) => answer.reason).length;
  show(answers.at(-1));
  if (answers.length > 1) say(`${counted(answers.length)}: ${answers.length - unread} classified, ${unread} not readable.`);
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
    made.append(element("td", answer.isRejected ? "none of these" : className(best(answer))));
    made.append(element("td", percent(answer.probabilities[best(answer)])));
  }
  answer.button = open;
  return made;
}

function show(answer) {
  for (const each of answers) each.button.setAttribute("aria-pressed", String(each === answer));
  say(describe(answer), Boolean(answer.reason));
  byId("answer").hidden = Boolean(answer.reason);
  if (answer.reason) return;
  byId("preview").src = answer.preview;
  byId("preview").alt = oneLine(answer.name);
  byId("label").textContent = answer.isRejected ? "None of these" : className(best(answer));
  byId("name").textContent = oneLine(answer.name);
  const ordered = [...classes.keys()].sort((a, b) => answer.probabilities[b] - answer.probabilities[a]);
  byId("bars").replaceChildren(...ordered.slice(0, MAX_BARS).map((number) => bar(number, answer.probabilities[number])));
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
  for (const { preview } of answers) if (preview) URL.revokeObjectURL(preview);
  answers.length = 0;
  pending.length = 0;
  if (current) current.isCleared = true;
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
  const columns = rejects ? ["strangeness", "none_of_these"] : [];
  const lines = [["path", "class", "probability", ...classes, ...columns, "reason"]];
  for (const answer of answers) {
    const shares = answer.reason ? classes.map(() => "") : answer.probabilities.map((share) => share.toFixed(6));
    const label = answer.reason ? ["", ""] : [classes[best(answer)], shares[best(answer)]];
    const rejection = answer.reason ? ["", ""] : [answer.strangeness?.toFixed(6), answer.isRejected];
    lines.push([answer.name, ...label, ...shares, ...(rejects ? rejection : []), answer.reason ?? ""]);
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
