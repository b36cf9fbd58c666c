/**
 * All photos of the index, page by page as one scrolls.
 *
 * The list has no sizes, so photos are put into the rows once their pictures are there, in order: nothing that is
 * seen moves.
 */

import { ask, dropped } from "./api.js";
import { byId, make } from "./dom.js";
import { problem } from "./problem.js";
import { show } from "./pictures.js";
import { anchor, roving } from "./roving.js";
import { Rows } from "./rows.js";
import { indexed } from "./subject.js";
import { gone, tile } from "./tile.js";

const PAGE = 48;
const SIDE = 400; // pixels of a picture
const AHEAD = 900; // pixels below the window that are filled

/** The photos in the page's `#wall-rows`; `grown()` is called when there are more. */
export class Wall {
  constructor(grown) {
    this.grown = grown;
    this.rows = new Rows(byId("wall-rows"), (width) => Math.min(210, Math.max(112, width / 6)));
    roving(byId("wall-rows"));
    const near = ([end]) => { if (end.isIntersecting) this.more(); };
    this.near = new IntersectionObserver(near, { rootMargin: `${AHEAD}px` });
    this.filters = null;
    this.photos = [];
  }

  /** Show the photos that pass `filters`; what is shown already stays. */
  show(filters) {
    const query = new URLSearchParams(filters).toString();
    if (query === this.filters) return;
    this.filters = query;
    this.reset();
  }

  /** Start over, with the index as it is now. */
  reset() {
    this.stop?.abort();
    this.stop = new AbortController();
    this.photos = [];
    this.ids = new Set();
    this.next = 0;
    this.loading = null;
    this.rows.clear();
    this.skeletons();
    this.watch();
  }

  /** Load the next page; resolves once its photos are on the wall. */
  more() {
    if (this.next === null) return Promise.resolve();
    const { signal } = this.stop;
    this.loading ??= this.page(signal).catch((error) => {
      if (dropped(error)) return;
      this.near.disconnect();
      byId("wall-end").replaceChildren(problem("The photos cannot be listed", error.message, () => this.again()));
    }).finally(() => { if (!signal.aborted) this.loading = null; });
    return this.loading;
  }

  again() {
    this.skeletons();
    this.near.observe(byId("wall-end"));
  }

  async page(signal) {
    const page = await ask(`photos?offset=${this.next}&limit=${PAGE}&${this.filters}`, { signal });
    this.generation = page.generation;
    byId("total").textContent = `${page.total.toLocaleString()} ${page.total === 1 ? "photo" : "photos"}`;
    const fresh = page.photos.filter(({ id }) => !this.ids.has(id)); // those before have moved when the index grew
    const loads = fresh.map(async (photo) => {
      const img = make("img", { alt: "" });
      const subject = indexed(photo);
      return show(img, subject, SIDE, signal).then(() => [subject, img], (error) => [subject, null, error]);
    });
    if (!this.photos.length) this.rows.clear();
    for (const load of loads) {
      const [subject, img, error] = await load;
      signal.throwIfAborted();
      this.add(subject, img, error);
    }
    anchor(byId("wall-rows"));
    this.grown();
    this.next = page.next;
    if (this.next === null) this.finish();
    else this.watch();
  }

  add(subject, img, error) {
    const made = tile(subject, img);
    if (error) gone(made, error);
    this.ids.add(subject.id);
    this.photos.push(subject);
    this.rows.add(made, img ? img.naturalWidth / img.naturalHeight : 4 / 3);
  }

  /** Look again whether the end is near: it may not have left the window. */
  watch() {
    this.near.unobserve(byId("wall-end"));
    this.near.observe(byId("wall-end"));
  }

  skeletons() {
    const shapes = [1.5, 0.75, 1.33, 1.33, 1.5, 0.67, 1.33, 1.5];
    const row = shapes.map((ratio) => {
      const made = make("div", { className: "tile skeleton" });
      made.style.setProperty("--r", ratio);
      return made;
    });
    byId("wall-end").replaceChildren(make("div", { className: "row" }, ...row));
  }

  finish() {
    this.near.disconnect();
    byId("wall-end").replaceChildren();
    if (this.photos.length) return;
    const empty = "The index holds no photos yet. What mmgem index adds appears here.";
    const words = this.filters ? "No photo passes the filters." : empty;
    byId("wall-end").append(make("p", { className: "empty" }, words));
  }
}
