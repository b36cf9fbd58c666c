/**
 * The server: one way to ask it anything.
 *
 * A token is asked for when it is wanted. A busy server (429) is asked again when it says so, a server that is gone
 * until it is back; the page says both. Everything else that goes wrong is an `Error` with a line for people.
 */

import { pause } from "./patience.js";
import { askToken, token } from "./token.js";

const LATER = [429, 503]; // busy; about to stop
const TRIES = 6; // of a busy server
const LONGEST = 30; // seconds between two tries

const BROKEN = "The connection broke while this was sent; it may be too large for the server.";
const unanswered = (s) => `The server does not answer. Trying again in ${s} s.`;
const busy = (s) => `The server is busy. Trying again in ${s} s.`;

/** Whether `error` only says that the answer is not wanted any more. */
export const dropped = (error) => error.name === "AbortError";

/**
 * Ask `path`; returns the JSON, or the Blob with `as: "blob"`.
 * `body`: an object, sent as JSON, or FormData. `signal` ends it.
 */
export async function ask(path, { body, signal, as = "json" } = {}) {
  for (let tries = 1, gone = 0, broken = 0; ; ) {
    const shown = token();
    let reply;
    try {
      reply = await fetch(path, request(body, shown, signal));
    } catch (error) {
      if (dropped(error)) throw error;
      if (body !== undefined && (await answers()) && broken++) throw new Error(BROKEN);
      await pause("gone", Math.min(2 ** gone++, LONGEST), unanswered, signal);
      continue;
    }
    if (reply.ok) return as === "blob" ? reply.blob() : reply.json();
    if (reply.status === 401) await askToken(shown);
    else if (LATER.includes(reply.status) && tries++ < TRIES) {
      const wait = Math.min(Number(reply.headers.get("Retry-After")) || 1, LONGEST);
      await pause("busy", wait, busy, signal);
    } else throw new Error(await reason(reply));
  }
}

const answers = () => fetch("healthz").then((reply) => reply.ok, () => false);

function request(body, shown, signal) {
  const headers = shown === null ? {} : { Authorization: `Bearer ${shown}` };
  if (body === undefined) return { headers, signal };
  if (body instanceof FormData) return { method: "POST", headers, body, signal };
  headers["Content-Type"] = "application/json";
  return { method: "POST", headers, body: JSON.stringify(body), signal };
}

async function reason(reply) {
  const told = await reply.json().catch(() => null);
  return told?.error?.message ?? `The server answered ${reply.status} ${reply.statusText}.`;
}
