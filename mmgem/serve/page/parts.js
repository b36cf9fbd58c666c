/** Viewer: the telling regions of the photo, numbered on it, with a sentence each. */

import { byId, keepInside, make, place } from "./dom.js";
import { askAbout } from "./subject.js";
import { clear, work } from "./work.js";

const COUNT = 6; // as many as there are colours

/**
 * The tool, for the photo `looking()` gives; `shown()` is called before regions are, `pick(box)` when one is chosen
 * (shares of the photo).
 */
export function parting(looking, shown, pick) {
  const button = byId("find-parts");
  button.onclick = () => {
    if (button.getAttribute("aria-pressed") === "true") return hide();
    const { subject, signal } = looking();
    const task = () => askAbout(subject, "regions", { count: COUNT, captions: true }, signal);
    return work(byId("parts-said"), button, signal, task, (answer) => {
      shown();
      pressed(true);
      return draw(answer, pick);
    });
  };
  return { hide, reset: hide };
}

function hide() {
  pressed(false);
  byId("part-boxes").replaceChildren();
  clear(byId("parts-said"));
}

function pressed(on) {
  byId("find-parts").setAttribute("aria-pressed", String(on));
  byId("find-parts").textContent = on ? "Hide the regions" : "Find regions";
}

function draw({ regions, width, height }, pick) {
  const boxes = byId("part-boxes");
  boxes.replaceChildren();
  if (!regions.length) return make("p", { className: "quiet" }, "Nothing stands out in this photo.");
  const list = make("ol", { className: "part-list" });
  regions.forEach(({ box, caption }, i) => {
    const number = () => make("b", {}, String(i + 1));
    const mark = make("span", { className: `part c${i % COUNT}` }, number(), make("em", {}, caption));
    place(mark, box, width, height);
    mark.classList.toggle("low", box[3] > 0.85 * height);
    const props = { type: "button", className: `part-row c${i % COUNT}`, title: "Take this box" };
    const row = make("button", props, number(), make("span", {}, caption));
    const light = (on) => {
      boxes.classList.toggle("one", on);
      mark.classList.toggle("lit", on);
      if (on) keepInside(mark.querySelector("em"));
    };
    row.onpointerenter = row.onfocus = () => light(true);
    row.onpointerleave = row.onblur = () => light(false);
    row.onclick = () => pick([box[0] / width, box[1] / height, box[2] / width, box[3] / height]);
    boxes.append(mark);
    list.append(make("li", {}, row));
  });
  return list;
}
