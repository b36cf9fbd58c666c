/** The search field: words while they are typed, the photo that is searched by, or both. */

import { byId, icon, make, place, typing } from "./dom.js";
import { show } from "./pictures.js";
import { current, go } from "./route.js";
import { subjectOf } from "./subject.js";
import { baseName } from "./tile.js";

const SETTLED = 250; // ms without a key, then the words are searched for
const PAUSE = 2000; // ms; words typed after such a pause are a step of their own for "back"
const COUNTS = [12, 24, 48, 96, 200];

/** Wire the field and the options for a server that tells `info` of itself. */
export function searchbar(info) {
  const words = byId("words");
  let timer, last = 0;
  const settle = () => {
    clearTimeout(timer);
    const q = words.value.trim();
    if (q === current().q) return;
    const replace = Date.now() - last < PAUSE && q !== "" && current().q !== "";
    last = Date.now();
    go({ tab: "photos", q }, { replace });
  };
  words.oninput = () => {
    byId("clear").hidden = words.value === "" && !current().like;
    clearTimeout(timer);
    timer = setTimeout(settle, SETTLED);
  };
  byId("search").onsubmit = (event) => {
    event.preventDefault();
    settle();
  };
  const clear = () => {
    words.value = "";
    clearTimeout(timer);
    go(NO_QUERY);
    draw(current(), true);
    words.focus();
  };
  byId("clear").onclick = clear;
  byId("chip").onclick = () => go({ view: current().like });
  const unchip = () => {
    go({ like: "", box: null });
    words.focus();
  };
  byId("unchip").onclick = unchip;
  words.onkeydown = (event) => {
    if (event.key === "Backspace" && words.value === "" && current().like) unchip();
    if (event.key === "Escape" && byId("clear").hidden === false) {
      event.preventDefault();
      clear();
    }
  };
  addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || typing()) return;
    if (document.querySelector("dialog[open]")) return;
    event.preventDefault();
    go({ tab: "photos" });
    words.select();
  });
  options(info);
}

const NO_QUERY = { tab: "photos", q: "", like: "", box: null };

function options(info) {
  const counts = COUNTS.filter((n) => n <= info.limits.k);
  byId("k").append(...counts.map((n) => make("option", { value: n }, String(n))));
  byId("k").onchange = (event) => go({ k: Number(event.target.value) });
  byId("rerank").onchange = (event) => go({ rerank: event.target.checked });
  byId("whole").onchange = () => go({ regions: false });
  byId("regions").onchange = () => go({ regions: true });
  if (info.index.regions) return;
  byId("regions").disabled = true;
  byId("regions").parentElement.title = "This index holds whole photos only; mmgem index --regions 20 adds regions.";
}

/** Show `state` in the field and the options; `anew`: also where the user is typing. */
export function draw(state, anew) {
  const words = byId("words");
  if (anew || document.activeElement !== words) words.value = state.q;
  words.placeholder = state.like ? "and words …" : "What do you want to see?";
  byId("clear").hidden = !state.q && !state.like && words.value === "";
  byId(state.regions ? "regions" : "whole").checked = true;
  byId("rerank").checked = state.rerank;
  byId("rerank").disabled = state.regions || state.like !== "";
  const k = byId("k");
  if (![...k.options].some((option) => option.value === String(state.k))) {
    k.append(make("option", { value: state.k }, String(state.k)));
  }
  k.value = String(state.k);
  drawChip(state);
}

function drawChip(state) {
  const chip = byId("chip");
  const subject = state.like ? subjectOf(state.like) : null;
  chip.hidden = subject === null;
  byId("unchip").hidden = state.like === "";
  if (subject === null) return chip.replaceChildren();
  const img = make("img", { alt: "" });
  const picture = make("span", { className: "chip-photo" }, img);
  chip.replaceChildren(picture, make("span", {}, state.box ? "Like this part" : "Like this photo"));
  chip.setAttribute("aria-label", `Searching by ${subject.name ? baseName(subject.name) : "a photo"}; open it`);
  return show(img, subject, 512).then(
    () => {
      const [width, height] = [subject.width || img.naturalWidth, subject.height || img.naturalHeight];
      if (!state.box || !subject.width && Math.max(width, height) >= 512) return;
      const box = make("span", { className: "hit-box" });
      place(box, state.box, width, height);
      picture.append(box);
    },
    () => img.replaceWith(icon("photo")),
  );
}
