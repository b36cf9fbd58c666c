/** The photo that is looked at, as large as it fits. */

import { byId } from "./dom.js";
import { show } from "./pictures.js";

const SMALL = 400; // pixels of the picture that is there at once, as on the wall
const MOST = 2048; // pixels the server makes

/**
 * Show `subject`: first a small picture, then a sharp one. Throws what is wrong with it.
 * A picture that came smaller than asked for tells the photo's own size.
 */
export async function stage(subject, signal) {
  const img = byId("large");
  byId("stage-error").hidden = true;
  byId("frame").classList.add("loading");
  img.removeAttribute("src");
  shape(subject.width ? subject.width / subject.height : 4 / 3);
  if (subject.upload === null) {
    await show(img, subject, SMALL, signal);
    shape(img.naturalWidth / img.naturalHeight);
  }
  const { width, height } = byId("stage").getBoundingClientRect();
  const side = Math.min(MOST, Math.ceil((Math.max(width, height) * devicePixelRatio) / 256) * 256);
  await show(img, subject, side, signal);
  shape(img.naturalWidth / img.naturalHeight);
  byId("frame").classList.remove("loading");
  if (!subject.width && Math.max(img.naturalWidth, img.naturalHeight) < side) {
    Object.assign(subject, { width: img.naturalWidth, height: img.naturalHeight });
  }
}

function shape(ratio) {
  byId("frame").style.setProperty("--r", ratio);
}
