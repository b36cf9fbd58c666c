/**
 * Photos into `<img>`.
 *
 * Without a token an address does; with one the photo is fetched and shown as a blob. An address that fails is
 * fetched too, which waits for a busy server and knows what is wrong.
 */

import { ask } from "./api.js";
import { token } from "./token.js";

const AT_ONCE = 4; // fetched; the rest of the browser's connections are for answers
const waiting = [];
let running = 0;

/** Load a photo, its longest side at most `side` pixels, into `img`. Throws what is wrong with it. */
export async function show(img, subject, side, signal) {
  if (subject.upload !== null) {
    if (subject.url === null) throw new Error("This browser cannot show photos of this kind; the server can read it.");
    return load(img, subject.url);
  }
  const path = `photos/${subject.id}/thumb?side=${side}`;
  if (token() === null) {
    try {
      return await load(img, path, signal);
    } catch {
      signal?.throwIfAborted();
    }
  }
  const url = URL.createObjectURL(await inTurn(() => ask(path, { as: "blob", signal })));
  return load(img, url, signal).finally(() => URL.revokeObjectURL(url));
}

function load(img, url, signal) {
  return new Promise((done, fail) => {
    signal?.addEventListener("abort", () => fail(signal.reason), { once: true });
    img.onload = () => done(img);
    img.onerror = () => fail(new Error("The photo cannot be shown."));
    img.src = url;
  });
}

async function inTurn(work) {
  if (running >= AT_ONCE) await new Promise((go) => { waiting.push(go); });
  running += 1;
  try {
    return await work();
  } finally {
    running -= 1;
    waiting.shift()?.();
  }
}
