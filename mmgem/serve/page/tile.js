/** A photo in a row: a button with its picture, and for a hit its score and its box. */

import { dropped } from "./api.js";
import { moves, span } from "./clip.js";
import { make, place } from "./dom.js";
import { show } from "./pictures.js";
import { go } from "./route.js";

const DOUBT = "probably no match";

/**
 * A tile for `subject` (see subject.js); `img` is its picture if it is loaded already. A hit has `score`, `share`
 * (of the best score) and `rank`.
 */
export function tile(subject, img = null, hit = null) {
  const name = baseName(subject.name) + (moves(subject) ? ` ${span(subject)}` : "");
  const doubt = hit && doubtful(hit) ? `, ${DOUBT}` : "";
  const label = hit ? `${hit.rank}: ${name}, similarity ${hit.score.toFixed(2)}${doubt}` : name;
  const button = make("button", { type: "button", className: "photo", tabIndex: -1, title: name, "aria-label": label });
  const made = make("div", { className: "tile", role: "listitem" }, button);
  made.dataset.id = subject.id;
  button.onclick = () => go({ view: subject.id });
  button.append(img ?? make("img", { alt: "" }));
  if (moves(subject)) button.append(make("span", { className: "time" }, `▶ ${span(subject)}`));
  if (hit?.box && subject.width) {
    const box = make("span", { className: "hit-box" });
    place(box, hit.box, subject.width, subject.height);
    button.append(box);
  }
  if (hit) {
    const bar = make("i");
    bar.style.width = `${100 * hit.share}%`;
    const figures = [make("b", {}, hit.score.toFixed(3)), make("span", {}, bar)];
    if (doubt) {
      made.classList.add("doubtful");
      figures.push(make("em", {}, DOUBT));
    }
    button.append(make("span", { className: "score", title: told(hit) }, ...figures));
  }
  return made;
}

/** Load the picture of a tile that has none yet, once it comes near the window. */
export function loadSoon(made, subject, side, signal) {
  made.classList.add("loading");
  const watcher = new IntersectionObserver(async ([seen]) => {
    if (!seen.isIntersecting) return;
    watcher.disconnect();
    try {
      await show(made.querySelector("img"), subject, side, signal);
    } catch (error) {
      if (!dropped(error)) gone(made, error);
    }
    made.classList.remove("loading");
  }, { rootMargin: "600px" });
  watcher.observe(made);
  signal?.addEventListener("abort", () => watcher.disconnect());
}

/** Mark a tile whose photo cannot be shown. */
export function gone(made, error) {
  const button = made.querySelector("button");
  made.classList.add("gone");
  button.querySelector("img").remove();
  button.prepend(make("span", { className: "gone-name" }, button.title, make("small", {}, error.message)));
}

/** The last part of a path. */
export const baseName = (path) => path.split("/").at(-1);

/** Whether a hit is probably no match; a model that is not calibrated does not say. */
export const doubtful = (hit) => hit.match !== null && hit.match < 0.5;

/** A hit's figures in words. */
export function told(hit) {
  const match = hit.match === null ? [] : [`match ${Math.round(100 * hit.match)}%`];
  if (hit.cosine === null) return [`similarity ${hit.score.toFixed(3)}`, ...match].join(" · ");
  const figures = [`score ${hit.score.toFixed(3)}`, `cosine ${hit.cosine.toFixed(3)}`];
  return [...figures, `log P ${hit.log_prob.toFixed(2)} a token`, ...match].join(" · ");
}
