// A query: from the address and into it. A person's own picture is not in it: the address says only that there was one.

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
  return location.pathname + (text ? `?${text}` : "");
}

/** Whether pictures are compared with something; without, a filter lists them. */
export const compares = (query) => Boolean(query.text.trim() || query.key || query.image);

/** Whether there is anything to ask. */
export const asks = (query) => compares(query) || Boolean(query.split || query.words.trim() || query.where.length);
