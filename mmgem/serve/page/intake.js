/** Photos the user brings: picked, pasted or dropped anywhere on the page. */

import { byId } from "./dom.js";
import { notice, settle } from "./notice.js";
import { uploaded } from "./subject.js";

const SIDE = 1600; // pixels; larger photos are sent smaller: the model sees no more, and it is soon there

/** Call `take(subject)` with each photo that is brought. */
export function intake(take) {
  const bring = async (files) => {
    const file = [...files].find(isPhoto);
    settle("refused");
    if (file) take(await prepare(file));
    else if (files.length) refuse(files[0].name);
  };
  byId("pick").onchange = (event) => {
    bring(event.target.files).finally(() => { event.target.value = ""; });
  };
  addEventListener("paste", (event) => {
    if ([...event.clipboardData.files].some(isPhoto)) {
      event.preventDefault();
      bring(event.clipboardData.files);
    }
  });
  dropping(bring);
}

function dropping(bring) {
  const sign = byId("drop");
  const carries = (event) => event.dataTransfer?.types.includes("Files");
  addEventListener("dragenter", (event) => { if (carries(event)) sign.showPopover(); });
  addEventListener("dragleave", (event) => { if (event.relatedTarget === null) sign.hidePopover(); });
  addEventListener("dragover", (event) => { if (carries(event)) event.preventDefault(); });
  addEventListener("drop", (event) => {
    sign.hidePopover();
    if (!carries(event)) return;
    event.preventDefault();
    bring(event.dataTransfer.files);
  });
}

function refuse(name) {
  notice("refused", `${name} is no photo: nothing was searched for.`, ["OK", () => settle("refused")]);
}

// Some systems give no type for the rarer formats; the server knows what it can read.
const isPhoto = (file) => file.type.startsWith("image/") || file.type === "";

/** The photo as it is sent, upright and of moderate size; one this browser cannot read goes as it is. */
async function prepare(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    return uploaded(file, null);
  }
  const { width, height } = bitmap;
  const scale = SIDE / Math.max(width, height);
  if (scale >= 1) return uploaded(file, URL.createObjectURL(file), width, height);
  const canvas = new OffscreenCanvas(Math.round(width * scale), Math.round(height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const blob = await canvas.convertToBlob({ type: "image/jpeg", quality: 0.92 });
  const small = new File([blob], file.name, { type: blob.type });
  return uploaded(small, URL.createObjectURL(small), canvas.width, canvas.height);
}
