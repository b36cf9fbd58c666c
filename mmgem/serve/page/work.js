/** One answer in one place of the viewer: waited for, shown, or why it did not come. */

import { dropped } from "./api.js";
import { make } from "./dom.js";

/**
 * Show in `output` what `draw(answer)` makes of the answer `task()` gives; `button` is busy meanwhile.
 * Nothing is shown once `signal` says that another photo is looked at.
 */
export async function work(output, button, signal, task, draw) {
  button.setAttribute("aria-busy", "true");
  output.replaceChildren(make("p", { className: "waiting", "aria-label": "Working" }));
  try {
    const answer = await task();
    if (!signal.aborted) output.replaceChildren(...[draw(answer)].flat());
  } catch (error) {
    if (!dropped(error) && !signal.aborted) output.replaceChildren(make("p", { className: "problem" }, error.message));
  } finally {
    button.removeAttribute("aria-busy");
  }
}
