// A query: from the address and into it, and the question that it puts to the server. A person's own picture is in
// neither: the address says only that there was one.

export const NONE = {text: "", key: "", image: null, plus: "", minus: "", weight: 2, split: "", words: "", where: [], page: 1};
const TEXTS = ["text", "key", "plus", "minus", "split", "words"];

/** The query of an address. `own` is the picture that this tab remembers for it, or null. */
export function fromAddress(search, own, weight) {
  const given = new URLSearchParams(search);
  const query = {...NONE, weight, image: own};
  for (const name of TEXTS) query[name] = (given.get(name) ?? "").slice(0, 1000);
  query.where = given.getAll("where").slice(0, 16).map((condition) => condition.slice(0, 1200));
  const number = Number.parseFloat(given.get("weight"));
  if (number > 0 && number <= 100) query.weight = number;
  const page = Number.parseInt(given.get("page"), 10);
  if (page > 1) query.page = page;
  if (query.key || query.image) query.text = "";
  query.lost = given.get("picture") === "own" && !own;
  return query;
}

/** The address of a query, which can be shared. */
export function toAddress(query, weight) {
  const parts = new URLSearchParams();
  for (const name of TEXTS) if (query[name]) parts.set(name, query[name]);
  for (const condition of query.where) parts.append("where", condition);
  if (query.image) parts.set("picture", "own");
  if (query.weight !== weight && (query.plus || query.minus)) parts.set("weight", String(query.weight));
  if (query.page > 1) parts.set("page", String(query.page));
  const text = parts.toString();
  return text ? `/?${text}` : "/";
}

/** Whether pictures are compared with something; without, a filter lists them. */
export const compares = (query) => Boolean(query.text.trim() || query.key || query.image);

/** Whether there is anything to ask. */
export const asks = (query) => compares(query) || Boolean(query.split || query.words.trim() || query.where.length);

/** Asks the server; resolves to its answer, rejects with an Error whose message is for people. */
export async function ask(query, limit, signal) {
  const parts = new URLSearchParams({offset: String((query.page - 1) * limit), limit: String(limit)});
  for (const name of ["split", "words"]) if (query[name].trim()) parts.set(name, query[name]);
  for (const condition of query.where) parts.append("where", condition);
  const pictured = query.key || query.image;
  if (pictured) {
    for (const name of ["plus", "minus"]) if (query[name].trim()) parts.set(name, query[name]);
    parts.set("weight", String(query.weight));
  }
  if (query.key) parts.set("key", query.key);
  if (!pictured && query.text.trim()) parts.set("text", query.text);
  const headers = {"content-type": "application/octet-stream"};
  const next = async () => answerOf(await (query.image
    ? fetch(`/search/image?${parts}`, {signal, method: "POST", headers, body: query.image})
    : fetch(`/search?${parts}`, {signal})));
  const answer = await next();
  while (answer.more && answer.hits.length < limit) { // long ones come in several answers
    parts.set("offset", String(answer.offset + answer.hits.length));
    parts.set("limit", String(limit - answer.hits.length));
    const {hits, more} = await next();
    answer.hits.push(...hits);
    answer.more = more;
  }
  return answer;
}

/** The JSON of an answer. Rejects with what the server says is wrong. */
export async function answerOf(response) {
  let body = null;
  try { body = await response.json(); } catch { /* not ours: a proxy's page */ }
  if (!response.ok) throw new Error(body?.error ?? `the server answers ${response.status}`);
  return body;
}
