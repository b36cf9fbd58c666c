/** A moment of a clip: the photo is its middle frame, over which the clip is played from its second. */

import { ask, dropped } from "./api.js";
import { byId, make } from "./dom.js";
import { token } from "./token.js";

const PICTURE = /\.(gif|webp|a?png)$/i; // that moves by itself
const FRAME_ONLY = "This browser cannot play files of this kind; the photo is a frame of it.";

/** Whether a photo is a moment of a clip. */
export const moves = (subject) => typeof subject.start === "number";

/** Seconds as a clock shows them: 1:02. */
export function clock(seconds) {
  const [hours, minutes, rest] = [seconds / 3600, (seconds / 60) % 60, seconds % 60].map(Math.floor);
  const two = (number) => String(number).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

/** From when to when a moment is: 1:02–1:10. */
export const span = ({ start, end }) => `${clock(start)}–${clock(end)}`;

/** What names a moment within its file's address. */
export const fragment = ({ start, end }) => `#t=${start},${end}`;

/** The page's `#play`; `looking()` tells the photo that is shown, and the signal that ends it. */
export function playing(looking) {
  const button = byId("play");
  const said = byId("play-said");
  let player = null;
  let url = null;

  function stop() {
    player?.remove();
    if (url !== null) URL.revokeObjectURL(url);
    player = url = null;
  }

  function refuse(text) {
    stop();
    said.textContent = text;
    said.hidden = false;
  }

  button.onclick = async () => {
    const { subject, signal } = looking();
    stop();
    said.hidden = true;
    try {
      const path = `photos/${subject.id}`;
      if (token() !== null) { // an address sends no token
        button.disabled = true;
        url = URL.createObjectURL(await ask(path, { as: "blob", signal }));
      }
      const onerror = () => refuse(FRAME_ONLY);
      player = PICTURE.test(subject.name)
        ? make("img", { className: "player", alt: subject.name, onerror })
        : make("video", { className: "player", controls: true, autoplay: true, playsInline: true, onerror });
      player.src = (url ?? path) + (player.tagName === "IMG" ? "" : fragment(subject));
      player.onpointerdown = (event) => event.stopPropagation(); // no box is drawn on it
      player.onkeydown = (event) => event.stopPropagation();
      byId("frame").append(player);
    } catch (error) {
      if (!dropped(error)) refuse(error.message);
    } finally {
      button.disabled = false;
    }
  };

  return {
    stop,
    /** Another photo is shown. */
    reset(subject) {
      stop();
      said.hidden = true;
      this.head(subject);
    },
    /** What is known of the photo has changed. */
    head(subject) {
      button.hidden = !moves(subject);
      if (moves(subject)) button.textContent = `Play ${span(subject)}`;
    },
  };
}
