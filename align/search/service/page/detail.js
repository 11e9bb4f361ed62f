// What is known of one picture: the chain from its web page to the model, and the filter's rules. Every foreign text goes
// into the page as text, never as HTML.

import {item as known} from "./source.js";

const SHOWN = 240; // characters of an address; a longer one is cut
const LONGEST = 8000; // of a link; no server takes a longer one, and tables of pairs may have cut it

const TAGS = {
  "align.model_digest": "Registered as", "align.git_revision": "Code, git", "align.data_digest": "Data", "align.dvc_lock": "dvc.lock",
  "align.promoted_at": "Promoted", "align.promoted_because": "Promoted because", "align.flow_run": "Flow run",
};

const dialog = document.getElementById("detail");
const title = document.getElementById("detail-title");
const body = document.getElementById("detail-body");

/** An element with children; texts become text. */
export function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** An image by its address, or a promise of it; where it cannot be shown, the words that say so. */
export function picture(address, why) {
  const shown = element("img", {class: "picture", alt: "", loading: "lazy"});
  const fail = () => shown.replaceWith(element("span", {class: "picture absent"}, why));
  shown.addEventListener("error", fail);
  Promise.resolve(address).then((found) => { shown.src = found; }, fail);
  return shown;
}

/** The spelling of a web address that a browser would ask for; null for any other text, which is no link. */
export function webAddress(text) {
  if (text.length > LONGEST) return null;
  try {
    const url = new URL(text);
    return /^https?:\/\//i.test(text) && /^https?:$/.test(url.protocol) && !url.username && !url.password ? url.href : null;
  } catch {
    return null;
  }
}

/** An address: a link if it is one of the web, spelt as the browser reads it, so that no sign in it shows another. */
function address(text) {
  const href = webAddress(text);
  const whole = href ?? text;
  const said = whole.length > SHOWN ? `${whole.slice(0, SHOWN)}… (${whole.length.toLocaleString("en")} characters)` : whole;
  if (!href) return element("bdi", {class: "address"}, said);
  return element("a", {class: "address", dir: "ltr", href, rel: "noreferrer noopener", target: "_blank"}, said);
}

function facts(rows) {
  const list = element("dl", {});
  for (const [name, value] of rows) {
    if (value !== null && value !== undefined && value !== "") list.append(element("dt", {}, name), element("dd", {}, value));
  }
  return list;
}

/** The values of a catalogue's row that are there. */
export const row = (columns) => Object.entries(columns).filter(([, value]) => value !== null).map(([name, value]) => [name, String(value)]);

function rules(rows) {
  const withValues = rows.some((rule) => rule.values);
  const names = ["Rule", "Verdict", "It drops", "Where", ...(withValues ? ["Values"] : [])];
  // The roles are what these elements have; on a phone, where a row is drawn as a block, browsers forget them.
  const cell = (said, kind = "") => element("td", {role: "cell", class: kind}, said);
  const lines = rows.map((rule) => element("tr", {role: "row"},
    element("th", {role: "rowheader", scope: "row"}, rule.rule),
    cell(rule.verdict, rule.verdict),
    cell(rule.what),
    cell(rule.drops_where ?? "", "condition"),
    ...(withValues ? [cell(rule.values)] : [])));
  const head = element("tr", {role: "row"}, ...names.map((name) => element("th", {role: "columnheader", scope: "col"}, name)));
  const table = element("table", {role: "table", class: "rules"},
    element("thead", {role: "rowgroup"}, head), element("tbody", {role: "rowgroup"}, ...lines));
  return element("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": "Rules of the filter"}, table);
}

/** One link of the chain: its name, and what is said of it. */
const step = (name, ...parts) => element("li", {}, element("h3", {}, name), ...parts);
const list = (parts) => element("ul", {}, ...parts.map((part) => element("li", {}, part)));

function pages(found) {
  const known = [...new Set(found.map((pair) => pair.page_url).filter(Boolean))];
  if (!known.length) return element("p", {}, "not recorded");
  return known.length === 1 ? element("p", {}, address(known[0])) : list(known.map(address));
}

function pairs(item) {
  const kept = {true: "kept by the filter", false: "dropped by the filter", null: "not yet filtered"}[item.pair.kept];
  const addresses = [...new Set(item.found.map((pair) => pair.url).filter(Boolean))];
  return [
    element("p", {class: item.pair.kept === false ? "drops" : "passes"}, kept),
    list(item.found.map((pair) => element("span", {}, element("bdi", {}, pair.text), " ", element("span", {class: "key"}, pair.key)))),
    ...addresses.map((url) => element("p", {}, "Picture at ", address(url))),
  ];
}

function chain(item) {
  const served = item.served;
  const version = served.version === null ? served.name : `${served.name} version ${served.version}`;
  const steps = item.split === "catalogue"
    ? [step("Row of the catalogue", list(item.texts), facts(row(item.columns).map(([name, value]) => [name, address(value)])))]
    : [step("Web page", pages(item.found)),
      step(item.found.length === 1 ? "Pair" : `${item.found.length} pairs`, ...pairs(item)),
      step("Shard", element("p", {}, item.shard, " ", element("span", {class: "key"}, `byte ${item.offset_bytes.toLocaleString("en")}`)),
        element("p", {}, `Part of the data: ${item.split}`))];
  return element("ol", {class: "chain"}, ...steps,
    step("Model", element("p", {}, version), facts([
      ["Trained on this picture", item.split === "catalogue" ? null : item.trained_on],
      ["MLflow run", served.run_id],
      ["Digest", served.model_digest],
      ...Object.entries(item.version_tags).map(([name, value]) => [TAGS[name] ?? name, value]),
    ])));
}

function shown(item, like) {
  const more = element("button", {type: "button"}, "Search for pictures like this one");
  more.addEventListener("click", () => { dialog.close(); like(item.key); });
  return [
    element("div", {class: "top"},
      element("div", {}, picture(item.large, item.picture_missing ?? "the picture is not here"), more),
      chain(item)),
    ...(item.split === "catalogue" ? [] : [element("h3", {}, "Rules of the filter")]),
    ...item.pair.notes.map((note) => element("p", {class: "note"}, note)),
    item.pair.rules.length ? rules(item.pair.rules)
      : item.split === "catalogue" ? null : element("p", {}, "The rules are not recorded here."),
    element("p", {class: "key"}, `sha256 of the picture: ${item.image_id}`),
  ];
}

let latest = 0;
let left = "";

/** Opens the dialog for a picture. `like(key)` searches for pictures like it. */
export async function open(key, like) {
  const number = ++latest;
  left = key;
  title.textContent = `Picture ${key}`;
  body.replaceChildren(element("p", {}, "…"));
  if (!dialog.open) dialog.showModal();
  title.focus();
  let parts;
  try {
    parts = shown(await known(key), like);
  } catch (error) {
    parts = [element("p", {class: "warning"}, error.message)];
  }
  if (number === latest) body.replaceChildren(...parts.filter((part) => part !== null));
}

document.getElementById("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); }); // beside it
// Not every browser gives the focus back. And a new answer may have replaced the button in the meantime.
dialog.addEventListener("close", () => document.querySelector(`#results [data-key="${CSS.escape(left)}"]`)?.focus());
