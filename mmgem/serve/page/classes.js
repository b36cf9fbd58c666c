/** Viewer: which of the names one types the photo, or the box on it, shows. */

import { byId, make } from "./dom.js";
import { askAbout } from "./subject.js";
import { clear, work } from "./work.js";

const TOP = 5;

/** The tool, for the photo `looking()` gives; `box(subject)` resolves to the box on it in pixels, or null. */
export function classing(looking, box) {
  byId("classes-form").onsubmit = (event) => {
    event.preventDefault();
    const { subject, signal } = looking();
    const names = [...new Set(byId("classes").value.split(",").map((name) => name.trim()).filter(Boolean))];
    const button = byId("classes-form").querySelector("button");
    const task = async () => {
      if (names.length < 2) throw new Error("Type two names or more, with commas between.");
      const fields = { classes: names, top: Math.min(TOP, names.length) };
      const at = await box(subject, signal);
      return askAbout(subject, "classify", at ? { ...fields, box: at } : fields, signal);
    };
    const draw = ({ guesses, none }) => {
      const list = make("ul", { className: "guesses" }, ...guesses.map(row));
      if (none === null || none <= 0.5) return list;
      const percent = `${Math.round(100 * none)}%`;
      return [make("p", { className: "quiet" }, `Probably none of these (${percent}). The nearest:`), list];
    };
    work(byId("classes-said"), button, signal, task, draw);
  };
  return { reset: () => clear(byId("classes-said")) };
}

function row(guess) {
  const bar = make("i");
  bar.style.width = `${100 * guess.probability}%`;
  const percent = guess.probability < 0.01 ? "<1%" : `${Math.round(100 * guess.probability)}%`;
  const meter = make("span", { className: "meter" }, bar);
  return make("li", {}, make("span", {}, guess.class), meter, make("b", {}, percent));
}
