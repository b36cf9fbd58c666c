/** Viewer: what is known of the photo's file, and the shots of its clip. */

import { ask, dropped } from "./api.js";
import { clock } from "./clip.js";
import { copy } from "./copy.js";
import { byId, make } from "./dom.js";
import { show } from "./pictures.js";
import { go, read, write } from "./route.js";
import { indexed } from "./subject.js";

const SIDE = 160; // pixels of a shot
const NEAR = "1km";

/**
 * The tools, for the photo `looking()` gives. `local`: the server is on this machine; `turned(id)` is called to go to
 * another shot.
 */
export function filing(looking, local, turned) {
  let info = null;
  byId("copy-path").textContent = local ? "Copy path" : "Copy name";
  byId("copy-path").onclick = () => tell(async () => {
    await copy(info.path ?? info.name);
    return "Copied.";
  });
  byId("open-folder").hidden = !local;
  byId("open-folder").onclick = () => tell(async () => {
    await ask(`photos/${info.id}/reveal`, { body: {}, signal: looking().signal });
    return "Its folder is open on this machine.";
  });

  async function tell(task) {
    const said = byId("file-said");
    try {
      said.textContent = await task();
    } catch (error) {
      if (!dropped(error)) said.textContent = error.message;
    }
  }

  return {
    /** Ask what is known of `subject`; `come(info)` is called with it. Another photo's facts are gone at once. */
    async reset(subject, come) {
      const { signal } = looking();
      info = null;
      byId("file-tool").hidden = byId("shots-tool").hidden = true;
      byId("file-said").textContent = "";
      if (subject.upload !== null) return;
      try {
        info = await ask(`photos/${subject.id}/info`, { signal });
      } catch {
        return; // the stage says what is wrong with the photo
      }
      if (signal.aborted) return;
      come(info);
      byId("facts").replaceChildren(...rows(info));
      byId("file-tool").hidden = false;
      shots(info, signal);
    },
    /** Go to the shot that is `by` further; whether there are any. */
    step(by) {
      const all = info?.shots ?? [];
      const to = all[all.findIndex(({ id }) => id === info.id) + by];
      if (to) turned(to.id);
      return all.length > 1;
    },
  };

  function shots({ id, shots: all }, signal) {
    byId("shots-tool").hidden = all.length < 2;
    byId("shots").replaceChildren(...all.map((shot) => {
      const img = make("img", { alt: "" });
      const at = clock(shot.start);
      const props = { type: "button", "aria-label": `Shot at ${at}`, "aria-current": shot.id === id ? "true" : null };
      show(img, indexed(shot), SIDE, signal).catch(() => {});
      return make("button", { ...props, className: "shot", onclick: () => turned(shot.id) }, img, make("span", {}, at));
    }));
    byId("shots").querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
}

function rows(info) {
  const folder = info.name.split("/").slice(0, -1).join("/");
  const { latitude, longitude, date } = info;
  const place = latitude === null || longitude === null ? null : [latitude, longitude].map((x) => x.toFixed(4)).join(",");
  return [
    row("Folder", folder || "the indexed folder", folder && { folder }),
    date && row(info.dated ? "Taken" : "File date", date.replace("T", " ").slice(0, 16), { date: date.slice(0, 10) }),
    info.camera && row("Camera", info.camera, { camera: info.camera }),
    place && row("Place", place.replace(",", ", "), { near: `${place},${NEAR}` }),
    info.width && row("Size", `${info.width} × ${info.height}, ${megabytes(info.bytes)}`),
  ].filter(Boolean);
}

/** A fact; with `filter` a link to all photos that share it. */
function row(name, value, filter = null) {
  const link = filter && make("a", { href: `#${write({ ...read(""), ...filter })}`, title: "All photos that share it" }, value);
  return make("div", {}, make("dt", {}, name), make("dd", {}, link || value));
}

const megabytes = (bytes) => (bytes < 1e6 ? `${Math.ceil(bytes / 1000)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);
