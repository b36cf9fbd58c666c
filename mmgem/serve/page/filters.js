/** The filters: a form, and a tag for each that is set, which takes it away. Named as in the API. */

import { ask } from "./api.js";
import { byId, icon, make } from "./dom.js";
import { FILTERS, filtersOf, go } from "./route.js";

const FIELDS = ["folder", "name", "camera", "orientation", "min_width", "min_height", "lacks"]; // as they are
const DISTANCE = "10km";

/** Wire the form; `changed()` shows what the address says in it again. */
export function filtering() {
  const form = byId("filters");
  const button = byId("filter-open");
  button.onclick = () => {
    form.hidden = !form.hidden;
    button.setAttribute("aria-expanded", String(!form.hidden));
    if (form.hidden) return;
    suggest();
    form.elements.folder.focus();
  };
  const apply = () => { if (form.reportValidity()) go(read(form.elements)); };
  form.onchange = apply;
  form.onsubmit = (event) => {
    event.preventDefault();
    apply();
  };
  form.onkeydown = (event) => {
    if (event.key !== "Escape") return;
    button.click();
    button.focus();
  };
  byId("no-filters").onclick = () => go(NONE);
}

const NONE = Object.fromEntries(FILTERS.map((name) => [name, ""]));

/** Show the filters of `state` in the form and as tags. */
export function drawFilters(state) {
  const { elements } = byId("filters");
  for (const name of FIELDS) if (elements[name] !== document.activeElement) elements[name].value = state[name];
  const [first, last] = state.date.includes("..") ? state.date.split("..") : [state.date, state.date];
  elements.from.value = first.trim();
  elements.to.value = last.trim();
  const [, place, distance] = nearParts(state.near) ?? [null, state.near, ""];
  elements.place.value = place;
  const choices = [...elements.within.options].map((option) => option.value);
  if (distance && !choices.includes(distance)) elements.within.add(new Option(spaced(distance), distance));
  elements.within.value = distance || DISTANCE;
  const set = Object.keys(filtersOf(state));
  byId("no-filters").hidden = set.length < 2;
  byId("tags").replaceChildren(...set.map((name) => make("li", {}, tag(name, state[name]))));
}

function read({ from, to, place, within, ...fields }) {
  const change = Object.fromEntries(FIELDS.map((name) => [name, fields[name].value.trim()]));
  const [first, last] = [from.value.trim(), to.value.trim()];
  change.date = first === last ? first : `${first}..${last}`;
  change.near = place.value.trim() && `${place.value.replace(/\s+/g, "")},${within.value}`;
  return change;
}

const WORDS = {
  folder: (value) => `In ${value}`,
  name: (value) => `Named ${value}`,
  date: (value) => `Taken ${period(value)}`,
  camera: (value) => `By ${value}`,
  orientation: (value) => value[0].toUpperCase() + value.slice(1),
  min_width: (value) => `${value} px wide or more`,
  min_height: (value) => `${value} px high or more`,
  near: (value) => {
    const [, place, distance] = nearParts(value) ?? [];
    return place ? `Within ${spaced(distance)} of ${place}` : `Near ${value}`;
  },
  changed: (value) => `Changed ${period(value)}`,
  lacks: (value) => `Without ${value}`,
};

const nearParts = (value) => value.match(/^(.*),\s*([^,]*)$/); // all of it, place, distance
const spaced = (distance) => distance.replace(/k?m$/, " $&"); // 10 km

function period(value) {
  const [first, last] = value.split("..");
  if (last === undefined) return value;
  if (!first || !last) return first ? `from ${first}` : `until ${last}`;
  return `${first} to ${last}`;
}

/** A filter in words. */
export const inWords = (name, value) => WORDS[name](value);

function tag(name, value) {
  const words = inWords(name, value);
  const onclick = () => {
    go({ [name]: "" });
    (byId("tags").querySelector("button") ?? byId("filter-open")).focus();
  };
  const props = { type: "button", className: "tag", title: "Take this filter away", "aria-label": `Filter: ${words}. Take it away` };
  return make("button", { ...props, onclick }, make("span", {}, words), icon("x"));
}

/** Folders and cameras to choose from, asked for once. */
async function suggest() {
  if (byId("folders").childElementCount + byId("cameras").childElementCount) return;
  const { folders, cameras } = await ask("filters").catch(() => ({ folders: [], cameras: [] }));
  const option = ({ value, photos }) => make("option", { value, label: `${value} · ${photos.toLocaleString()}` });
  byId("folders").replaceChildren(...folders.map(option));
  byId("cameras").replaceChildren(...cameras.map(option));
}
