"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const [PATH, LABEL, DIGEST, THUMBNAIL] = [0, 1, 2, 3];
const BATCH = 40;
const isReview = data.task === "review";  // otherwise the photos have no label yet
const verb = isReview ? "relabel" : "label";
const byId = (id) => document.getElementById(id);
const list = byId("list");
const storageKey = `flowers-${data.task}-${data.id}`;

// Verdicts by the digest of a photo: {verdict, label}, where label is the number of the new class.
let verdicts = new Map();
const earlier = new Map(data.earlier.map((line) => [line[4], line]));
const undone = [];
let visible = [];
let rendered = 0;
let current = -1;

function restore() {
  try {
    verdicts = new Map(JSON.parse(localStorage.getItem(storageKey) || "[]"));
  } catch {
    verdicts = new Map();  // a browser that stores nothing for files, or something else under this name
  }
}

function store() {
  try {
    localStorage.setItem(storageKey, JSON.stringify([...verdicts]));
  } catch {
    // The verdicts stay on the page until it is closed.
  }
}

function element(name, text, properties = {}) {
  const made = Object.assign(document.createElement(name), properties);
  if (text !== undefined) made.textContent = text;
  return made;
}

function image(photo, size) {
  const [path, label] = data.photos[photo];
  return element("img", undefined, {
    src: `data:image/jpeg;base64,${data.photos[photo][THUMBNAIL]}`,
    alt: label === null ? path : `${data.classes[label]}: ${path}`, title: path, width: size, height: size, decoding: "async",
  });
}

function enlarge(photo) {
  const large = image(photo);
  large.removeAttribute("width");
  large.removeAttribute("height");
  byId("large").replaceChildren(large);
  byId("large").showModal();
}

const digestOf = (item) => data.photos[item.photo][DIGEST];
const labelOf = (item) => data.photos[item.photo][LABEL];

function describe(found) {
  if (!found) return "";
  if (found.verdict === "relabel") return `${verb} as ${data.classes[found.label]}`;
  if (found.verdict === "keep") return "keep the label";
  return isReview ? "drop the photo" : "leave the photo out";
}

function card(item, position) {
  const [path, label] = data.photos[item.photo];
  const made = element("article", undefined, { tabIndex: -1 });
  made.dataset.position = position;
  made.dataset.digest = digestOf(item);
  const own = image(item.photo, 144);
  own.addEventListener("click", () => enlarge(item.photo));
  made.append(own);
  const body = element("div");
  const kinds = element("div", undefined, { className: "kinds" });
  for (const kind of item.kinds) kinds.append(element("span", kind, { title: data.kinds[kind] }));
  const facts = isReview ? [`labeled ${data.classes[label]}`] : [];
  if (item.suggested !== null && item.suggested !== label) {
    facts.push(`looks like ${data.classes[item.suggested]} (${item.probability.toFixed(2)})`);
  }
  body.append(kinds, element("div", facts.join(", ")), element("div", path, { className: "path" }));
  const near = element("ul", undefined, { className: "near" });
  near.setAttribute("aria-label", "the most similar photos");
  for (const neighbor of item.neighbors) {
    const entry = element("li");
    entry.append(image(neighbor, 74), element("span", data.classes[data.photos[neighbor][LABEL]]));
    near.append(entry);
  }
  const bar = element("div", undefined, { className: "bar" });
  const choose = element("select");
  choose.setAttribute("aria-label", "new class");
  choose.append(element("option", `${verb} as…`, { value: "" }));
  data.classes.forEach((name, number) => {
    if (number !== label) choose.append(element("option", name, { value: String(number) }));
  });
  choose.addEventListener("change", () => choose.value && judge(item, "relabel", Number(choose.value)));
  const button = (text, verdict, number) => {
    const one = element("button", text, { type: "button" });
    one.addEventListener("click", () => judge(item, verdict, number));
    return one;
  };
  if (isReview) bar.append(button("keep", "keep"));
  if (item.suggested !== null && item.suggested !== label) {
    bar.append(button(data.classes[item.suggested], "relabel", item.suggested));
  }
  bar.append(choose, button(isReview ? "drop" : "leave out", "drop"), element("span", "", { className: "verdict" }));
  body.append(near, bar);
  made.append(body);
  made.addEventListener("focusin", () => { current = position; });
  show(made);
  return made;
}

function show(made) {
  const found = verdicts.get(made.dataset.digest);
  made.dataset.verdict = found ? found.verdict : "";
  made.querySelector(".verdict").textContent = describe(found);
}

function renderMore(until = rendered + BATCH) {
  const added = document.createDocumentFragment();
  for (; rendered < Math.min(until, visible.length); rendered += 1) added.append(card(visible[rendered], rendered));
  list.append(added);
  byId("end").textContent = rendered < visible.length ? "…"
    : data.omitted ? `${data.omitted.toLocaleString("en")} more photos are in audit.csv only (max_photos).` : "";
}

function filter() {
  const kind = isReview ? byId("kind").value : "all";
  const label = byId("label").value;
  const isOpen = byId("open").checked;
  visible = data.items.filter((item) =>
    (kind === "all" || (kind === "likely" ? item.kinds.length > 0 : item.kinds.includes(kind)))
    && (label === "all" || labelOf(item) === Number(label) || item.suggested === Number(label))
    && (!isOpen || !verdicts.has(digestOf(item))));
  list.replaceChildren();
  rendered = 0;
  current = -1;
  renderMore();
  report();
}

function report(text = "") {
  const wanted = new Set(data.items.filter((item) => item.kinds.length || !isReview).map(digestOf));
  const judged = [...wanted].filter((digest) => verdicts.has(digest)).length;
  byId("done").max = Math.max(1, wanted.size);
  byId("done").value = judged;
  byId("undo").disabled = undone.length === 0;
  byId("status").textContent = `${text ? `${text}. ` : ""}${visible.length.toLocaleString("en")} photos shown, `
    + (isReview ? `${judged} of ${wanted.size} findings judged, ${verdicts.size} verdicts`
      : `${judged} of ${wanted.size} done`);
}

function apply(digest, found) {
  if (found) verdicts.set(digest, found);
  else verdicts.delete(digest);
  store();
  for (const made of list.querySelectorAll(`[data-digest="${digest}"]`)) show(made);
}

function judge(item, verdict, label) {
  const digest = digestOf(item);
  if (verdict === "keep" && item.is_copied) return judge(item, "relabel", labelOf(item));  // the other copy is wrong
  undone.push([digest, verdicts.get(digest)]);
  const found = label === undefined ? { verdict } : { verdict, label };
  apply(digest, found);
  return report(`${data.photos[item.photo][PATH]}: ${describe(found)}`);
}

function undo() {
  if (!undone.length) return;
  const [digest, before] = undone.pop();
  apply(digest, before);
  const position = visible.findIndex((item) => digestOf(item) === digest);
  if (position >= 0) move(position);
  report("undone");
}

function move(position) {
  if (position < 0 || position >= visible.length) return;
  if (position >= rendered) renderMore(position + BATCH);
  list.children[position].focus();
}

// As flowers.runtime.text.to_csv: a spreadsheet must not take a name for a formula.
function cell(text) {
  const safe = /^'*[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function table() {
  const lines = new Map(earlier);
  for (const photo of data.photos) {
    const found = verdicts.get(photo[DIGEST]);
    if (!found || (lines.has(photo[DIGEST]) && lines.get(photo[DIGEST]) !== earlier.get(photo[DIGEST]))) continue;
    const label = found.verdict === "relabel" ? data.classes[found.label] : "";
    if (isReview) {
      lines.set(photo[DIGEST], [photo[PATH], data.classes[photo[LABEL]], found.verdict, label, photo[DIGEST]]);
    } else if (label) lines.set(photo[DIGEST], [photo[PATH], label, photo[DIGEST]]);
  }
  return [data.columns, ...lines.values()].map((line) => `${line.map(cell).join(",")}\n`).join("");
}

function save() {
  const link = element("a", undefined, {
    href: URL.createObjectURL(new Blob([table()], { type: "text/csv" })), download: data.file,
  });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  report(isReview ? "saved corrections.csv: train with data.corrections=corrections.csv"
    : "saved labels.csv: flowers suggest labels=labels.csv output=FOLDER copies the photos into folders");
}

function onKey(event) {
  if (event.target.matches("select, input") || event.altKey || event.metaKey) return;
  const key = event.key.toLowerCase();
  const item = visible[current];
  if ((event.ctrlKey && key === "z") || (!event.ctrlKey && key === "u")) undo();
  else if (event.ctrlKey) return;
  else if (byId("large").open) return;
  else if (key === "arrowdown") move(current + 1);
  else if (key === "arrowup") move(current - 1);
  else if (!item) return;
  else if (key === "k" && isReview) { judge(item, "keep"); move(current + 1); }
  else if (key === "enter" && event.target.matches("article, body")) enlarge(item.photo);
  else if (key === "d") { judge(item, "drop"); move(current + 1); }
  else if (key === "r" && item.suggested !== null && item.suggested !== labelOf(item)) {
    judge(item, "relabel", item.suggested);
    move(current + 1);
  } else if (/^[1-9]$/.test(key) && Number(key) <= data.classes.length && Number(key) - 1 !== labelOf(item)) {
    judge(item, "relabel", Number(key) - 1);
    move(current + 1);
  } else return;
  event.preventDefault();
}

function offerKinds() {
  const count = (kind) => data.items.filter((item) => item.kinds.includes(kind)).length;
  const options = [["likely", `all findings (${data.items.filter((item) => item.kinds.length).length})`]];
  for (const kind of Object.keys(data.kinds)) if (count(kind)) options.push([kind, `${kind} (${count(kind)})`]);
  options.push(["all", `all photos (${data.items.length})`]);
  for (const [value, text] of options) byId("kind").append(element("option", text, { value }));
}

function start() {
  restore();
  if (isReview) offerKinds();
  byId("label").append(element("option", "all classes", { value: "all" }));
  data.classes.forEach((name, number) => {
    const shortcut = number < 9 ? `${number + 1}: ` : "";
    byId("label").append(element("option", `${shortcut}${name}`, { value: String(number) }));
  });
  if (data.overlap.length) {
    const [first, second, share] = data.overlap[0];
    byId("overlap").textContent = `${(100 * share).toFixed(1)} % of ${first} and ${second} look like the other class.`;
  }
  for (const one of document.querySelectorAll("#kind, #label, #open")) one.addEventListener("change", filter);
  byId("undo").addEventListener("click", undo);
  byId("save").addEventListener("click", save);
  document.addEventListener("keydown", onKey);
  byId("large").addEventListener("click", () => byId("large").close());
  new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting) && rendered < visible.length) renderMore();
  }, { rootMargin: "1500px" }).observe(byId("end"));
  filter();
  move(0);
}

start();
