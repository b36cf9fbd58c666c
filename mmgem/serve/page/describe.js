/** Viewer: the photo, or the box drawn on it, in a sentence; and searching by either. */

import { Box } from "./box.js";
import { byId, keepInside, make, place } from "./dom.js";
import { go } from "./route.js";
import { askAbout, sizeOf } from "./subject.js";
import { clear, work } from "./work.js";

const bubble = () => byId("bubble");

/**
 * The tool, for the photo `looking()` gives: {subject, signal}. `searchable`: there is an index to search;
 * `boxed()` is called when the box has changed.
 */
export function describing(looking, searchable, boxed) {
  const box = new Box(changed, describeBox);
  addEventListener("resize", () => { if (!bubble().hidden) keepInside(bubble()); });
  byId("alike").hidden = byId("search-box").hidden = !searchable;

  byId("describe").onclick = () => {
    const { subject, signal } = looking();
    const task = () => askAbout(subject, "caption", {}, signal);
    const draw = (answer) => make("p", { className: "quote" }, answer.captions[0].text);
    work(byId("said"), byId("describe"), signal, task, draw);
  };
  byId("alike").onclick = () => find(looking().subject, null);
  byId("add-box").onclick = () => box.start();
  byId("remove-box").onclick = () => {
    box.set(null);
    byId("frame").focus();
  };
  byId("describe-box").onclick = describeBox;
  byId("search-box").onclick = () => {
    const { subject, signal } = looking();
    const task = () => pixels(subject, box.value, signal);
    work(byId("box-said"), byId("search-box"), signal, task, (at) => {
      find(subject, at);
      return [];
    });
  };

  function changed() {
    byId("box-buttons").hidden = box.value === null;
    byId("no-box").hidden = box.value !== null;
    clear(byId("box-said"));
    bubble().hidden = true;
    boxed();
  }

  function describeBox() {
    const { subject, signal } = looking();
    const at = box.value;
    const task = async () => askAbout(subject, "caption", { boxes: [await pixels(subject, at, signal)] }, signal);
    work(byId("box-said"), byId("describe-box"), signal, task, (answer) => {
      over(at, answer.captions[0].text);
      return make("p", { className: "unseen" }, answer.captions[0].text); // it is seen at the box
    });
  }

  return {
    box,
    /** Another photo: with the box `first`, in its pixels, if it was found by that. */
    reset(subject, first) {
      clear(byId("said"));
      box.set(first && subject.width ? shares(first, subject) : null);
    },
  };
}

function find(subject, box) {
  go({ tab: "photos", q: "", like: subject.id, box, view: "" });
}

/** Shares of the photo as pixels of it, to a tenth. */
export async function pixels(subject, [x0, y0, x1, y1], signal) {
  const [width, height] = await sizeOf(subject, signal);
  return [x0 * width, y0 * height, x1 * width, y1 * height].map((edge) => Math.round(10 * edge) / 10);
}

const shares = ([x0, y0, x1, y1], { width, height }) => [x0 / width, y0 / height, x1 / width, y1 / height];

/** The sentence at the box itself: under it, or in it where there is no room below. */
function over([x0, , x1, y1], text) {
  const label = bubble();
  label.textContent = text;
  label.hidden = false;
  place(label, [x0, y1, x1, y1], 1, 1);
  label.classList.toggle("above", y1 > 0.82);
  keepInside(label);
}
