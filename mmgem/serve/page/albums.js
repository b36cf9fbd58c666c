/** Albums: a search with its filters under a name. They are kept in this browser; their links work in others. */

import { copy } from "./copy.js";
import { byId, icon, make } from "./dom.js";
import { inWords } from "./filters.js";
import { current, filtersOf, read, write } from "./route.js";

const KEY = "mmgem.albums";
let changed = () => {};

/** All albums: {name, hash}, by name. */
export function albums() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return kept.filter(({ name, hash }) => typeof name === "string" && typeof hash === "string");
  } catch {
    return []; // no storage, or another's
  }
}

/** The album `state` is, or undefined. */
export const albumOf = (state) => albums().find(({ hash }) => hash === hashOf(state));

const hashOf = (state) => write({ ...state, tab: "photos", view: "", question: "" });

/** Wire the dialog; `redraw()` is called when albums have changed. */
export function collecting(redraw) {
  changed = redraw;
  const dialog = byId("albums");
  byId("album-open").onclick = () => {
    say("");
    draw();
    dialog.showModal();
  };
  byId("album-close").onclick = () => dialog.close();
  dialog.onclick = (event) => { if (event.target === dialog || event.target.closest("a")) dialog.close(); };
  byId("album-form").onsubmit = (event) => {
    event.preventDefault();
    const name = byId("album-name").value.trim();
    const others = albums().filter((album) => album.name !== name);
    if (store([...others, { name, hash: hashOf(current()) }])) say(`“${name}” is kept.`);
  };
  addEventListener("storage", (event) => { if (event.key === KEY) redraw(); });
}

function store(list) {
  try {
    localStorage.setItem(KEY, JSON.stringify(list.sort((a, b) => a.name.localeCompare(b.name))));
  } catch {
    say("This browser keeps nothing for the page: no album was made.");
    return false;
  }
  draw();
  changed();
  return true;
}

const say = (words) => { byId("album-said").textContent = words; };

function draw() {
  const all = albums();
  byId("album-list").replaceChildren(...all.map(row));
  byId("album-none").hidden = all.length > 0;
  const state = current();
  const brought = state.like.startsWith("upload");
  const something = hashOf(state) !== "" && !brought;
  byId("album-form").hidden = !something;
  byId("album-why").hidden = something;
  byId("album-why").textContent = brought
    ? "A search by a photo of yours cannot be kept: the photo is not in the index."
    : "Search for something, or set a filter, to keep it as an album.";
  byId("album-what").textContent = inShort(state);
  byId("album-name").value = albumOf(state)?.name ?? state.q;
}

function row({ name, hash }) {
  const link = make("a", { href: `#${hash}` }, make("b", {}, name), make("small", {}, inShort(read(hash))));
  const copyLink = async () => {
    try {
      await copy(`${location.origin}${location.pathname}#${hash}`);
      say(`The link to “${name}” is copied.`);
    } catch (error) {
      say(error.message);
    }
  };
  const remove = () => {
    if (store(albums().filter((album) => album.name !== name))) say(`“${name}” is removed; its photos are not touched.`);
    byId("album-close").focus();
  };
  const round = (label, drawing, onclick) =>
    make("button", { type: "button", className: "round", title: label, "aria-label": `${label}: ${name}`, onclick }, icon(drawing));
  return make("li", {}, link, round("Copy the link", "link", copyLink), round("Remove the album", "x", remove));
}

/** A search in a line. */
function inShort(state) {
  const filters = Object.keys(filtersOf(state)).map((name) => inWords(name, state[name]));
  const like = state.like ? [state.box ? "Like a part of a photo" : "Like a photo"] : [];
  const words = state.q ? [`“${state.q}”`] : [];
  return [...words, ...like, ...(state.regions ? ["regions"] : []), ...filters].join(" · ");
}
