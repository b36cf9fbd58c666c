/** Waiting for the server, said at the top of the page with a button to hurry; requests wait together. */

import { notice, settle } from "./notice.js";

const pauses = new Map();

/**
 * Wait `seconds`, or until the button is pressed; `words(s)` say for what with `s` left. Requests that wait for the
 * same `key` share one wait. Throws what `signal` aborts with.
 */
export async function pause(key, seconds, words, signal) {
  signal?.throwIfAborted();
  const shared = pauses.get(key) ?? begin(key, seconds, words);
  shared.waiting += 1;
  try {
    await Promise.race([shared.over, aborted(signal)]);
  } finally {
    shared.waiting -= 1;
    if (shared.waiting === 0) end(key, shared);
  }
}

function begin(key, seconds, words) {
  const until = Date.now() + 1000 * seconds;
  const shared = { waiting: 0 };
  shared.over = new Promise((done) => {
    const tell = () => {
      const left = Math.ceil((until - Date.now()) / 1000);
      if (left > 0) notice(key, words(left), ["Now", done]);
      else done();
    };
    tell();
    shared.timer = setInterval(tell, 250);
  });
  pauses.set(key, shared);
  return shared;
}

function end(key, shared) {
  clearInterval(shared.timer);
  if (pauses.get(key) !== shared) return;
  pauses.delete(key);
  settle(key);
}

function aborted(signal) {
  return new Promise((_, fail) => {
    signal?.addEventListener("abort", () => fail(signal.reason), { once: true });
  });
}
