// What is known of one picture: its page, its texts, the filter's rules, its shard and the model. Every foreign text goes
// into the page as text, never as HTML.

import {answerOf} from "./query.js";

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

/** An image; where it cannot be shown, the words that say so. */
export function picture(address, why) {
  const shown = element("img", {class: "picture", src: address, alt: "", loading: "lazy"});
  shown.addEventListener("error", () => shown.replaceWith(element("span", {class: "picture absent"}, why)));
  return shown;
}

/** A link to an address of the web; anything else is shown as text. */
function link(address) {
  if (!/^https?:\/\//i.test(address)) return address;
  return element("a", {href: address, rel: "noreferrer noopener", target: "_blank"}, address);
}

function facts(rows) {
  const list = element("dl", {});
  for (const [name, value] of rows) {
    if (value !== null && value !== undefined && value !== "") list.append(element("dt", {}, name), element("dd", {}, value));
  }
  return list;
}

function rules(pair) {
  const rows = pair.rules.map((rule) => element("tr", {},
    element("th", {scope: "row"}, rule.rule),
    element("td", {class: rule.verdict}, rule.verdict),
    element("td", {}, rule.what),
    element("td", {}, rule.values)));
  const names = ["Rule", "Verdict", "It drops", "Values"].map((name) => element("th", {scope: "col"}, name));
  const table = element("table", {}, element("thead", {}, element("tr", {}, ...names)), element("tbody", {}, ...rows));
  return element("div", {class: "scroll", tabindex: "0", role: "region", "aria-label": "Rules of the filter"}, table);
}

function shown(item, like) {
  const pair = item.pair;
  const more = element("button", {type: "button"}, "Search for pictures like this one");
  more.addEventListener("click", () => { dialog.close(); like(item.key); });
  const served = item.served;
  const version = served.version === null ? served.name : `${served.name} version ${served.version}`;
  const texts = element("ul", {}, ...item.texts.map((text) => element("li", {}, text)));
  return [
    element("div", {class: "top"},
      picture(`${item.image}&large=true`, item.picture_missing ?? "the picture is not here"),
      facts([
        ["Key", item.key],
        ["Page", pair?.page_url ? link(pair.page_url) : pair ? "not recorded" : null],
        ["Picture", pair?.url ? link(pair.url) : null],
        ["sha256", item.image_id],
        ["Shard", item.shard],
        ["Part of the data", item.split],
      ])),
    element("p", {}, more),
    element("h3", {}, "Alt-texts"), texts,
    element("h3", {}, "Model"),
    facts([
      ["Version", version],
      ["MLflow run", served.run_id],
      ["Digest", served.model_digest],
      ["Trained on this picture", item.trained_on],
      ...Object.entries(item.version_tags).map(([name, value]) => [name.replace(/^align\./, "").replaceAll("_", " "), value]),
    ]),
    element("h3", {}, "Rules of the filter"),
    ...(pair ? [...pair.notes.map((note) => element("p", {class: "warning"}, note)), rules(pair)]
      : [element("p", {}, item.pair_missing ?? "nothing is known of it here")]),
  ];
}

let latest = 0;

/** Opens the dialog for a picture. `like(key)` searches for pictures like it. */
export async function open(key, like) {
  const number = ++latest;
  title.textContent = `Picture ${key}`;
  body.replaceChildren(element("p", {}, "…"));
  if (!dialog.open) dialog.showModal();
  title.focus();
  let parts;
  try {
    parts = shown(await answerOf(await fetch(`/item/${encodeURIComponent(key)}`)), like);
  } catch (error) {
    parts = [element("p", {class: "warning"}, error.message)];
  }
  if (number === latest) body.replaceChildren(...parts);
}

document.getElementById("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); }); // beside it
