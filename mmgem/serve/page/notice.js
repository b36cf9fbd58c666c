/** The line at the top that says what the page waits for: a busy server, or none. */

import { byId, make } from "./dom.js";

const reasons = new Map();

/** Show `text` for as long as `key` stands, with a button if `action` is [label, function]. */
export function notice(key, text, action = null) {
  reasons.set(key, { text, action });
  render();
}

/** `key` stands no longer. */
export function settle(key) {
  if (reasons.delete(key)) render();
}

function render() {
  const line = byId("notice");
  const last = [...reasons.values()].at(-1);
  // While a dialog is open, only what is in it can be seen and used.
  (document.querySelector("dialog[open]") ?? document.body).append(line);
  line.hidden = last === undefined;
  if (last === undefined) return line.replaceChildren();
  const [label, act] = last.action ?? [];
  const button = label && make("button", { type: "button", className: "button", onclick: act }, label);
  // Only what changed is read out: the text node stays the same while its words do.
  if (line.querySelector("span")?.textContent !== last.text) line.replaceChildren(make("span", {}, last.text));
  line.querySelector("button")?.remove();
  if (button) line.append(button);
  return line;
}

document.addEventListener("close", render, true);
