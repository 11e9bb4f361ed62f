// The page: fields, results as one types, pages of them, and the address of the query.

import {asks, compares, fromAddress, NONE, toAddress} from "./query.js";
import {element, open, picture, row} from "./detail.js";
import {HAS_SERVICE, health, image, search, start} from "./source.js";

const PAUSE_MS = 200; // after the last key that was typed
const LOOK_MS = 5000; // between two looks at what is served
const LIMIT = 24;
const WEIGHT = 2;

const by = (id) => document.getElementById(id);
const FIELDS = ["text", "plus", "minus", "words", "split"];
const own = new Map(); // pictures of this tab, by number: the history says which one a query had
let query = {...NONE};
let running = null, pause = null, digest = null, pushed = -Infinity;

// --- the query

function change(changes, {typed = false} = {}) {
  query = {...query, lost: false, ...changes, page: changes.page ?? 1};
  show();
  clearTimeout(pause);
  pause = setTimeout(() => { remember(typed); run(); }, typed ? PAUSE_MS : 0);
}

function remember(typed) {
  const address = toAddress(query, WEIGHT);
  const state = {own: query.image ? numberOf(query.image) : null};
  if (address === location.pathname + location.search && history.state?.own === state.own) return;
  const replaces = typed && performance.now() - pushed < 2000; // one entry of the history for one word typed
  history[replaces ? "replaceState" : "pushState"](state, "", address);
  pushed = performance.now();
}

function numberOf(image) {
  for (const [number, known] of own) if (known === image) return number;
  own.set(own.size + 1, image);
  return own.size;
}

function restore() {
  query = fromAddress(location.search, own.get(history.state?.own) ?? null, WEIGHT);
  show();
  run();
}

async function run() {
  running?.abort();
  document.title = query.text ? `${query.text} - image search` : "Image search";
  by("start").hidden = true;
  if (!asks(query)) {
    by("results").replaceChildren();
    by("pages").hidden = true;
    say(query.lost ? "This address was made with a picture that is not in it: choose the picture again."
      : "Results come while you type.");
    return first();
  }
  const mine = running = new AbortController();
  const begins = performance.now();
  by("results").setAttribute("aria-busy", "true");
  try {
    const answer = await search(query, LIMIT, mine.signal);
    results(answer, Math.round(performance.now() - begins));
  } catch (error) {
    if (mine.signal.aborted) return;
    by("results").replaceChildren();
    by("pages").hidden = true;
    say(error instanceof TypeError ? "The server does not answer." : `No results: ${error.message}`);
  }
  if (running === mine) by("results").removeAttribute("aria-busy");
}

// --- what is shown

const say = (text) => { by("status").textContent = text; };
const numbers = new Intl.NumberFormat("en");

function results(answer, ms) {
  const last = answer.offset + answer.hits.length;
  say(answer.hits.length
    ? `Pictures ${answer.offset + 1} to ${last} of ${numbers.format(answer.num_images)}${compares(query) ? ", nearest first" : ""}, in ${ms} ms. ${answer.hits[0].sure === null ? answer.promise : ""}`
    : `No picture of ${numbers.format(answer.num_images)} matches. ${answer.hint}`);
  by("results").replaceChildren(...answer.hits.map(result));
  const below = answer.hits.findIndex((hit) => hit.sure === false);
  if (below >= 0) by("results").children[below].before(element("li", {class: "line"}, answer.promise));
  by("pages").hidden = query.page === 1 && !answer.more;
  by("previous").disabled = query.page === 1;
  by("next").disabled = !answer.more;
  by("page-number").textContent = `Page ${query.page}`;
  named(answer.served);
}

/** Before anything is asked: some pictures and an example. Also the fields of a catalogue's columns. */
async function first() {
  const begin = await start().catch(() => null);
  if (!begin) return;
  const fields = Object.entries(begin.columns).flatMap(([name, choices]) => choices
    ? [field(name, "=", name, choices)] : [field(name, ">=", `${name} from`, []), field(name, "<=", `${name} to`, [])]);
  by("columns").replaceChildren(...fields);
  const isCatalogue = begin.hits[0]?.split === "catalogue";
  by("split").parentElement.hidden = isCatalogue;
  by("words").labels[0].textContent = `Words in the ${isCatalogue ? "text" : "alt-text"}`;
  show();
  if (asks(query) || query.lost) return;
  by("start-said").textContent = `Some of ${numbers.format(begin.num_images)} pictures.` + (begin.example ? " For example:" : "");
  by("example").textContent = by("text").placeholder = begin.example ?? "";
  by("example").hidden = !begin.example;
  by("start").hidden = false;
  by("results").replaceChildren(...begin.hits.map(result));
  named(begin.served);
}

/** A field of a column: a choice where the values are few. */
function field(name, operator, label, choices) {
  const input = choices.length
    ? element("select", {}, element("option", {value: ""}, "all"), ...choices.map((one) => element("option", {}, one)))
    : element("input", {type: "text", maxlength: "1000"});
  input.dataset.condition = name + operator;
  input.addEventListener("input", () => change({where: [...by("columns").querySelectorAll("[data-condition]")]
    .filter((one) => one.value.trim()).map((one) => one.dataset.condition + one.value)}, {typed: true}));
  input.id = `where ${name + operator}`;
  return element("div", {class: "field"}, element("label", {for: input.id}, label), input);
}

function result(hit) {
  const values = row(hit.columns).map((pair) => pair.join(": ")).join(", ");
  const button = element("button", {type: "button", "data-key": hit.key},
    picture(hit.image, "the picture is not here"),
    hit.score ? element("span", {class: "score"}, `${hit.rank}. score ${hit.score.toFixed(3)}`) : null,
    element("span", {class: "caption"}, hit.texts.join(" | ")),
    values ? element("span", {class: "values"}, values) : null);
  button.addEventListener("click", () => open(hit.key, (key) => change({...NONE, weight: query.weight, key})));
  return element("li", hit.sure === false ? {class: "below"} : {}, button);
}

let previewed = null;

function show() {
  const pictured = Boolean(query.key || query.image);
  for (const name of FIELDS) if (by(name) !== document.activeElement || by(name).value !== query[name]) by(name).value = query[name];
  by("weight").value = query.weight;
  by("weight-shown").textContent = query.weight;
  by("by-text").hidden = pictured;
  by("by-picture").hidden = by("words-row").hidden = !pictured;
  for (const one of by("columns").querySelectorAll("[data-condition]")) {
    const known = query.where.find((condition) => condition.startsWith(one.dataset.condition));
    if (one !== document.activeElement) one.value = known?.slice(one.dataset.condition.length) ?? "";
  }
  if (query.split || query.words || query.where.length) by("filters").open = true;
  if (previewed) URL.revokeObjectURL(previewed);
  previewed = query.image ? URL.createObjectURL(query.image) : null;
  if (!pictured) return by("preview").removeAttribute("src");
  Promise.resolve(previewed ?? image(query.key)).then((address) => { by("preview").src = address; }, () => null);
  by("preview-name").textContent = query.image ? `Your picture: ${query.image.name || "pasted"}` : `Pictures like ${query.key}`;
}

function named(served) {
  const name = served.version === null ? served.name : `${served.name} version ${served.version}`;
  by("served").textContent = `Model: ${[name, served.origin].filter(Boolean).join(", ")}`;
  digest = served.digest;
}

async function look() {
  if (document.hidden) return;
  try {
    const found = await health();
    const before = digest;
    if (found.served) named(found.served); else by("served").textContent = "No model yet";
    const notes = [...found.warnings, ...(found.pictures ? [found.pictures] : [])];
    if (by("warning").textContent !== notes.join(" ")) by("warning").textContent = notes.join(" ");
    by("warning").hidden = !notes.length;
    if (found.served && before !== digest && (before !== null || !by("results").childElementCount)) run();
  } catch {
    by("served").textContent = "The server does not answer";
  }
}

// --- what a person does

for (const name of ["text", "plus", "minus", "words"]) {
  by(name).addEventListener("input", (event) => change({[name]: event.target.value}, {typed: true}));
}
by("split").addEventListener("change", (event) => change({split: event.target.value}));
by("weight").addEventListener("input", (event) => change({weight: Number(event.target.value)}, {typed: true}));
by("query").addEventListener("submit", (event) => { event.preventDefault(); change({page: 1}); });
by("remove").addEventListener("click", () => { change({key: "", image: null, plus: "", minus: ""}); by("text").focus(); });
by("previous").addEventListener("click", () => turn(-1));
by("next").addEventListener("click", () => turn(1));
by("example").addEventListener("click", (event) => change({text: event.target.textContent}));
by("file").addEventListener("change", (event) => { take(event.target.files[0]); event.target.value = ""; });

function turn(by_) {
  change({page: query.page + by_});
  by("status").scrollIntoView({block: "start"});
}

function take(file) {
  if (!file) return;
  if (!HAS_SERVICE) return say("A picture of your own needs the service: align serve.");
  if (!file.type.startsWith("image/")) return say(`${file.name} is not a picture.`);
  change({...NONE, weight: query.weight, split: query.split, words: query.words, where: query.where, image: file});
  by("plus").focus();
}

document.addEventListener("paste", (event) => take([...event.clipboardData.files][0]));
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
document.addEventListener("dragleave", () => document.body.classList.remove("dragging"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  take(event.dataTransfer.files[0]);
});
addEventListener("popstate", restore);

by("drop").hidden = by("programs").hidden = !HAS_SERVICE;
restore();
if (asks(query)) first();
look();
setInterval(look, LOOK_MS);
