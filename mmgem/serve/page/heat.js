/** Viewer: where in the photo words are, as colours over it with the best place marked. */

import { byId, keepInside, make } from "./dom.js";
import { current } from "./route.js";
import { askAbout } from "./subject.js";
import { doubtful } from "./tile.js";
import { clear, work } from "./work.js";

// From cold to hot, RGB; those of mmgem heatmap.
const STOPS = [[20, 20, 60], [80, 30, 130], [190, 50, 110], [250, 130, 60], [255, 235, 140]];
const LEAST = 0.2; // how much of the colour shows where the map is cold
const MOST = 0.65; // and where it is hot

/** The tool, for the photo `looking()` gives; `shown()` is called before a map is. */
export function heating(looking, shown) {
  const words = byId("heat-words");
  byId("heat-form").onsubmit = (event) => {
    event.preventDefault();
    const { subject, signal } = looking();
    const text = words.value.trim();
    if (!text) return words.focus();
    const button = byId("heat-form").querySelector("button");
    const task = () => askAbout(subject, "heatmap", { text }, signal);
    return work(byId("heat-said"), button, signal, task, (answer) => {
      shown();
      paint(answer.heat);
      mark(answer, text);
      return [figures(answer), make("button", { type: "button", className: "link", onclick: hide }, "Hide the map")];
    });
  };

  return {
    hide,
    /** Another photo. */
    reset() {
      hide();
      words.value = current().q || words.value;
    },
  };
}

function hide() {
  byId("heat").hidden = byId("peak").hidden = true;
  clear(byId("heat-said"));
}

function figures(answer) {
  const { heat, score } = answer;
  const low = Math.min(...heat.flat());
  const ends = [low, score].map((value) => make("span", {}, value.toFixed(2)));
  const ramp = make("span", { className: "ramp" }, ends[0], make("i"), ends[1]);
  const doubt = doubtful(answer) ? "Probably not in this photo. " : "";
  const said = `${doubt}Similarity from place to place; the ring is where it is highest.`;
  return make("p", { className: "quiet" }, ramp, said);
}

function paint(heat) {
  const canvas = byId("heat");
  const flat = heat.flat();
  const low = Math.min(...flat);
  const range = Math.max(Math.max(...flat) - low, 1e-9);
  canvas.width = heat[0].length;
  canvas.height = heat.length;
  const pixels = new ImageData(canvas.width, canvas.height);
  flat.forEach((value, i) => pixels.data.set(colour((value - low) / range), 4 * i));
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  canvas.hidden = false;
}

/** RGBA of a level from 0 to 1. */
function colour(level) {
  const at = level * (STOPS.length - 1);
  const below = Math.min(Math.floor(at), STOPS.length - 2);
  const mixed = STOPS[below].map((c, i) => c + (STOPS[below + 1][i] - c) * (at - below));
  return [...mixed, 255 * (LEAST + (MOST - LEAST) * level)];
}

function mark({ peak, width, height }, text) {
  const ring = byId("peak");
  ring.style.left = `${(100 * peak[0]) / width}%`;
  ring.style.top = `${(100 * peak[1]) / height}%`;
  const words = make("span", {}, text);
  ring.replaceChildren(words);
  ring.classList.toggle("low", peak[1] > 0.88 * height);
  ring.hidden = false;
  keepInside(words);
}
