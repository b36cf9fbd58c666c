/** Text to the clipboard. */

import { make } from "./dom.js";

/** Copy `text`. Throws where the browser does not let pages do that. */
export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = make("textarea", { value: text, className: "unseen" }); // plain http from another machine
  (document.querySelector("dialog[open]") ?? document.body).append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  if (!done) throw new Error("This browser does not let the page copy.");
}
