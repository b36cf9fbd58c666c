/** The server's token: asked for when it is wanted, kept until the tab closes. */

import { byId } from "./dom.js";

const KEY = "mmgem.token";
let asked = null;

/** The token, or null. */
export const token = () => sessionStorage.getItem(KEY);

/**
 * Ask for a token because `refused` (the one that was sent, or null) did not do; resolves once there is one, fails
 * if the user does not give any.
 */
export function askToken(refused) {
  if (token() !== refused) return Promise.resolve(); // another request has asked meanwhile
  asked ??= new Promise((done, fail) => {
    const dialog = byId("token");
    byId("token-problem").textContent = refused === null ? "" : "The server does not take this token.";
    byId("token-form").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, byId("token-value").value.trim());
      dialog.close();
      done();
    };
    dialog.onclose = () => fail(new Error("This server wants a token."));
    dialog.showModal();
    byId("token-value").select();
  }).finally(() => { asked = null; });
  return asked;
}
