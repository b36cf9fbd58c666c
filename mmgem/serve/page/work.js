/** One answer in one place of the viewer: waited for, shown, or why it did not come. */

import { dropped } from "./api.js";
import { make } from "./dom.js";

const latest = new WeakMap(); // output -> the task it waits for

/**
 * Show in `output` what `draw(answer)` makes of the answer `task()` gives; `button` is busy meanwhile.
 * Nothing is shown if the output was cleared or given another task, or `signal` says that another photo is looked at.
 */
export async function work(output, button, signal, task, draw) {
  const wanted = () => latest.get(output) === task && !signal.aborted;
  latest.set(output, task);
  button.setAttribute("aria-busy", "true");
  output.replaceChildren(make("p", { className: "waiting", "aria-label": "Working" }));
  try {
    const answer = await task();
    if (wanted()) output.replaceChildren(...[draw(answer)].flat());
  } catch (error) {
    if (!dropped(error) && wanted()) output.replaceChildren(make("p", { className: "problem" }, error.message));
  } finally {
    if (latest.get(output) === task || !latest.has(output)) button.removeAttribute("aria-busy");
  }
}

/** Show nothing in `output`, nor what it waits for. */
export function clear(output) {
  latest.delete(output);
  output.replaceChildren();
}
