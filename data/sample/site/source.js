// Answers without a service: the files that `align publish` wrote, and the text tower in this browser. It has the
// interface of the service's source.js, and gives the same answers.

import {tokenizer} from "./wordpiece.js";

export const HAS_SERVICE = false;
const MAX_RESULTS = 1000, MAX_WORDS = 8;
const AGAIN = "These pictures are out of date: reload the page.";
const here = (name) => new URL(name, import.meta.url);
const known = new Map(); // what was asked for, by name

/** What `make` resolves to, made once; a failure is not kept. */
function once(name, make) {
  if (!known.has(name)) known.set(name, make().catch((error) => { known.delete(name); throw error; }));
  return known.get(name);
}

async function read(name, options) {
  const response = await fetch(here(name), options);
  if (response.status === 404) throw new Error(AGAIN);
  if (!response.ok) throw new Error(`the web space answers ${response.status}`);
  return response;
}

// --- files: about.json names the folder of the others, which are never changed

const published = async () => (await read("about.json", {cache: "no-cache"})).json();
const about = () => once("about", published);
const file = (name, as) => once(name, async () => (await read(`${(await about()).folder}/${name}`))[as]());

/** All parts of a kind. */
async function parts(kind, get) {
  const {num_images: all, at_once: sizes} = await about();
  return Promise.all(Array.from({length: Math.ceil(all / sizes[kind])}, (_, part) => get(part)));
}
const rowsOf = (part) => file(`rows/${part}.json`, "json");
const rows = () => once("rows", async () => (await parts("rows", rowsOf)).flat());

/** A function from a position to what the parts of a kind have of it. */
const within = (kind, get) => async (at) => {
  const size = (await about()).at_once[kind];
  return (await get(Math.floor(at / size)))[at % size];
};
const row = within("rows", rowsOf);

async function position(key) {
  const found = (await once("positions", async () => new Map((await rows()).map((one, at) => [one.key, at])))).get(key);
  if (found === undefined) throw new Error(`no picture with key '${key}' in the index`);
  return found;
}

/** A part of the pictures: what is known of each, and the bytes of all. */
const picturesOf = (part) => once(`pictures ${part}`, async () => {
  const data = await file(`pictures/${part}.bin`, "arrayBuffer");
  const length = new DataView(data).getUint32(0, true);
  let at = 4 + length;
  const facts = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
  return facts.map(({size, ...more}) => {
    at += size;
    return {...more, image: URL.createObjectURL(new Blob([data.slice(at - size, at)], {type: "image/jpeg"}))};
  });
});

const pictured = within("pictures", picturesOf);

/** The address of a picture. */
export const image = async (key) => (await pictured(await position(key))).image;

async function shown(at) {
  return {...await row(at), image: pictured(at).then((one) => one.image)};
}

// --- vectors: 24 bits a number, whose higher 8 find candidates, and the lower 16 decide among them

async function embedder() {
  return once("embedder", async () => {
    const [facts, ort, model, words] = await Promise.all([about(), import("./runtime/ort.wasm.min.mjs"),
      file("text_encoder.onnx", "arrayBuffer"), file("tokenizer.json", "json")]);
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmPaths = here("runtime/").href;
    const session = await ort.InferenceSession.create(model);
    known.delete("text_encoder.onnx");
    const numbers = tokenizer(words, facts.max_tokens);
    return async (text) => {
      const tokens = numbers(text), ids = BigInt64Array.from(tokens, BigInt), shape = [1, ids.length];
      const given = {input_ids: new ort.Tensor("int64", ids, shape),
        attention_mask: new ort.Tensor("int64", ids.map(() => 1n), shape)};
      return {vector: (await session.run(given)).text_embeds.data, splits: splits(text, tokens.length - 2)};
    };
  });
}

let asked = Promise.resolve();

/** How much a text's words are split: see align/model/embedder.py. */
const splits = (text, pieces) =>
  Math.log(Math.max(pieces, 1) / Math.max((text.match(/[\p{L}\p{N}_]+|[^\p{L}\p{N}_\s]/gu) ?? []).length, 1));

/** The embedding of a text and how much its words are split, one text at a time. */
function embed(text) {
  const mine = asked.then(embedder).then((run) => run(text));
  asked = mine.catch(() => null);
  return mine;
}

const coarseOf = async (part) => new Int8Array(await file(`coarse/${part}.bin`, "arrayBuffer"));
const fineOf = async (part) => new Int16Array(await file(`fine/${part}.bin`, "arrayBuffer"));

async function exact(at) {
  const {width, scale, at_once: sizes} = await about();
  const coarse = (await coarseOf(Math.floor(at / sizes.rows))).subarray((at % sizes.rows) * width);
  const fine = (await fineOf(Math.floor(at / sizes.fine))).subarray((at % sizes.fine) * width);
  return Float64Array.from({length: width}, (_, place) => (coarse[place] * 65536 + fine[place]) * scale);
}

const dot = (one, other, from = 0) => {
  let sum = 0;
  for (let place = 0; place < one.length; place += 1) sum += one[place] * other[from + place];
  return sum;
};

/** The k nearest of some, nearest first, as [position, score]. */
async function nearest(query, k, isAllowed) {
  const {width, at_once: sizes} = await about();
  const found = [];
  (await parts("rows", coarseOf)).forEach((vectors, part) => {
    for (let at = 0; at * width < vectors.length; at += 1) {
      const whole = part * sizes.rows + at;
      if (isAllowed(whole)) found.push([whole, dot(query, vectors, at * width)]);
    }
  });
  const first = ([one, its], [other, score]) => score - its || one - other;
  const some = found.sort(first).slice(0, 2 * k + 200);
  return (await Promise.all(some.map(async ([at]) => [at, dot(query, await exact(at))]))).sort(first).slice(0, k);
}

/** A picture with words added or taken away. */
async function composed(at, {plus, minus, weight}) {
  const sum = await exact(at);
  for (const [words, sign] of [[plus, weight], [minus, -weight]]) {
    if (words.trim()) (await embed(words)).vector.forEach((value, place) => { sum[place] += sign * value; });
  }
  const norm = Math.sqrt(dot(sum, sum));
  if (!(norm > 0)) throw new Error("image and text cancel each other out");
  return sum.map((value) => value / norm);
}

// --- filters

/** A number as people type it. With three decimals it may be a thousand. */
function number(text) {
  if (/^-?\d+(?:[.,](?:\d{1,2}|\d{4,15}))?$/.test(text)) return Number(text.replace(",", "."));
  throw new Error(`'${text}' is no number; write it as 1299.50`);
}

function condition(text, columns) {
  const names = Object.keys(columns);
  for (const {0: operator, index} of text.matchAll(/<=|>=|=|<|>/g)) {
    const written = text.slice(0, index).trim(), value = text.slice(index + operator.length).trim();
    const name = names.find((one) => one === written) ?? names.find((one) => one.toLowerCase() === written.toLowerCase());
    if (name === undefined) continue;
    if (columns[name] !== null && operator !== "=") throw new Error(`${text}: column ${name} has texts, which only = compares`);
    const wanted = columns[name] === null ? number(value) : value;
    const fulfils = {"=": (one) => one === wanted, "<": (one) => one < wanted, ">": (one) => one > wanted,
      "<=": (one) => one <= wanted, ">=": (one) => one >= wanted}[operator];
    return (one) => one.columns[name] !== null && fulfils(one.columns[name]);
  }
  throw new Error(`'${text}': expected COLUMN=VALUE, <, <=, > or >= with a column of the index: ${names.join(", ")}`);
}

const NO_LETTER = "[^\\p{L}\\p{M}\\p{N}_]";
const wholeWord = (word) => new RegExp(`(?:^|${NO_LETTER})${word.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&")}(?:$|${NO_LETTER})`, "iu");

/** A function that says whether a position passes the filters of a query. */
async function filter({split, words, where}) {
  const patterns = [...new Set(words.split(/\s+/).filter(Boolean))].map(wholeWord);
  if (patterns.length > MAX_WORDS) throw new Error(`words: ${patterns.length} different ones; at most ${MAX_WORDS} are looked for`);
  if (!patterns.length && !split && !where.length) return () => true;
  const {columns} = await about(), all = await rows();
  const conditions = where.map((one) => condition(one, columns));
  const passes = (one) => (!split || one.split === split) && conditions.every((fulfils) => fulfils(one))
    && patterns.every((pattern) => one.texts.some((text) => pattern.test(text)));
  const allowed = all.map(passes);
  return (at) => allowed[at];
}

const rounded = (score) => Math.round(Math.min(Math.max(score, -1), 1) * 1e6) / 1e6;

/** The least score above the line of a query, or null, and what an answer says of it: see align/search/surely.py. */
async function line({split, words, where}, asked, first) {
  const {promise, no_line: why} = await about();
  if (!promise) return [null, why.promise];
  if (!asked) return [null, why.words];
  if (split || words.trim() || where.length) return [null, why.all];
  const least = Math.round((promise.line + promise.slope * asked.splits) * 1e6) / 1e6;
  return [least, rounded(first) >= least ? promise.held : promise.silent];
}

// --- the interface

/** What a page begins with. The text tower is fetched meanwhile. */
export async function start() {
  const {served, num_images, example, columns, first} = await about();
  const hits = await Promise.all(first.map(async (at) => ({...await shown(at), score: 0})));
  embedder().catch(() => null); // a query says why
  return {served, num_images, example, columns, hits};
}

/** The answer to a query, as the service's; rejects with an Error whose message is for people. */
export async function search(query, limit, signal) {
  const offset = (query.page - 1) * limit, end = offset + limit;
  if (end > MAX_RESULTS) throw new Error(`offset + limit: ${end}; results end at ${MAX_RESULTS}`);
  const {served, num_images} = await about(), isAllowed = await filter(query);
  const own = query.key ? await position(query.key) : -1;
  const words = !query.key && query.text.trim() ? await embed(query.text) : null;
  const vector = query.key ? await composed(own, query) : words?.vector;
  signal?.throwIfAborted();
  const passes = (at) => at !== own && isAllowed(at);
  const found = vector ? await nearest(vector, end + 1, passes)
    : [...Array(num_images).keys()].filter(passes).slice(0, end + 1).map((at) => [at, 0]);
  const [least, promise] = vector ? await line(query, words, found[0]?.[1] ?? -1) : [null, ""];
  const hits = await Promise.all(found.slice(offset, end).map(async ([at, score], place) =>
    ({...await shown(at), rank: offset + place + 1, score: rounded(score), sure: least === null ? null : rounded(score) >= least})));
  signal?.throwIfAborted();
  return {served, num_images, offset, more: found.length > end && end < MAX_RESULTS, hint: "", promise, hits};
}

/** What is known of a picture. */
export async function item(key) {
  const {served, trained_on, pair} = await about();
  const at = await position(key), one = await shown(at), {found, image: large, ...facts} = await pictured(at);
  const pairs = found.map((more, place) => ({...more, text: one.texts[place]}));
  return {...one, ...facts, large, served, found: pairs, version_tags: {}, trained_on: trained_on[one.split], picture_missing: null,
    pair: {...pair, text: one.texts[0]}};
}

/** What a person should know: of a page that stays open, whether there is a newer one. */
export async function health() {
  const {served, warnings, folder} = await about(), isOld = (await published()).folder !== folder;
  return {served, warnings: isOld ? [...warnings, AGAIN] : warnings, pictures: null};
}
