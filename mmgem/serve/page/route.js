/**
 * What the page shows, kept in the address after `#`: links to it, back and forward work.
 *
 * `q` words, `like` a photo's id or an upload's name, with `box`; `regions`, `rerank`, `k` and the filters as in the
 * API; `view` the photo that is open; `tab`, `question` for the texts.
 */

export const FILTERS = [
  "folder", "name", "date", "camera", "orientation", "min_width", "min_height", "near", "changed", "lacks",
];
const NUMBERS = ["min_width", "min_height"];
const EMPTY = {
  tab: "photos", q: "", like: "", box: null, ...Object.fromEntries(FILTERS.map((name) => [name, ""])),
  regions: false, rerank: false, k: 24, view: "", question: "",
};

const listeners = [];
let now = read(location.hash);

/** The state an address stands for; what makes no sense in it is as if it were not there. */
export function read(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const state = { ...EMPTY };
  for (const name of ["q", "like", "view", "question", ...FILTERS]) state[name] = (given.get(name) ?? "").trim();
  state.tab = given.get("tab") === "texts" ? "texts" : "photos";
  state.regions = given.get("regions") === "1";
  state.rerank = given.get("rerank") === "1";
  const k = Number(given.get("k"));
  if (Number.isInteger(k) && k > 0) state.k = k;
  const box = (given.get("box") ?? "").split(",").map(Number);
  if (box.length === 4 && box.every(Number.isFinite)) state.box = box;
  return state;
}

/** The filters of `state` that are set, as the API takes them. */
export function filtersOf(state) {
  const set = FILTERS.filter((name) => state[name] !== "").map((name) => {
    const number = NUMBERS.includes(name) && Number.isInteger(Number(state[name]));
    return [name, number ? Number(state[name]) : state[name]]; // the server says what is wrong with others
  });
  return Object.fromEntries(set);
}

/** The part of an address after `#` that stands for `state`. */
export function write(state) {
  const out = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) {
    if (value === EMPTY[name] || value === null) continue;
    out.set(name, value === true ? "1" : Array.isArray(value) ? value.map(Math.round).join(",") : value);
  }
  return out.toString().replaceAll("%2C", ",").replaceAll("%2F", "/");
}

/** What is shown now. */
export const current = () => now;

/**
 * Change what is shown: a step that "back" undoes, or with `replace` none.
 * Tells the listeners `(state, before, moved)`; `moved`: by back, forward or a link.
 */
export function go(change, { replace = false } = {}) {
  const before = now;
  const hash = `#${write({ ...before, ...change })}`;
  now = read(hash);
  if (write(now) === write(before)) return;
  if (replace) history.replaceState(history.state, "", hash);
  else history.pushState({ inside: true }, "", hash);
  tell(before, false);
}

/** Undo the last step if it was one of this page's, else make `change`. */
export function leave(change) {
  if (history.state?.inside) history.back();
  else go(change, { replace: true });
}

/** Call `listener(state, before, moved)` whenever what is shown changes. */
export function listen(listener) {
  listeners.push(listener);
}

function tell(before, moved) {
  for (const listener of listeners) listener(now, before, moved);
}

history.scrollRestoration = "manual";
addEventListener("popstate", () => {
  const before = now;
  now = read(location.hash);
  tell(before, true);
});
