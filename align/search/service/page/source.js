// Answers of the service. `align publish` puts another file in the place of this one, with the same interface.

export const HAS_SERVICE = true;

/** What a page begins with. */
export const start = async () => answerOf(await fetch("start"));

/** What a person should know of the service. */
export const health = async () => answerOf(await fetch("health"));

/** The address of a picture. */
export const image = (key) => `image/${encodeURIComponent(key)}`;

/** What is known of a picture. */
export async function item(key) {
  const found = await answerOf(await fetch(`item/${encodeURIComponent(key)}`));
  return {...found, large: `${found.image}&large=true`};
}

/** The answer to a query; rejects with an Error whose message is for people. */
export async function search(query, limit, signal) {
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
    ? fetch(`search/image?${parts}`, {signal, method: "POST", headers, body: query.image})
    : fetch(`search?${parts}`, {signal})));
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
async function answerOf(response) {
  let body = null;
  try { body = await response.json(); } catch { /* not ours: a proxy's page */ }
  if (!response.ok) throw new Error(body?.error ?? `the server answers ${response.status}`);
  return body;
}
