/** What went wrong, where its answer would have been, with a way to try again. */

import { make } from "./dom.js";

/** A card that says `title` and `message`; `again`: what "Try again" does. */
export function problem(title, message, again = null) {
  const button = again && make("button", { type: "button", className: "button", onclick: again }, "Try again");
  const words = [make("h2", {}, title), make("p", {}, message)];
  return make("div", { className: "problem-card", role: "alert" }, ...words, button);
}
