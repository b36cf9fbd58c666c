/**
 * Photos in rows of one height, each with its own shape: rows are filled in order, and their height follows.
 *
 * Inside a row the style sheet does the work: photos grow in proportion to width by height.
 */

import { make } from "./dom.js";

const GAP = 8; // pixels, as in photos.css
const SLIMMEST = 0.4; // shapes beyond these are cut
const WIDEST = 3.5;

/** Rows in `container`; `height(width)`: how high a row of so many pixels should be at most. */
export class Rows {
  constructor(container, height) {
    this.container = container;
    this.height = height;
    this.tiles = [];
    this.width = 0;
    new ResizeObserver(() => this.arrange()).observe(container);
  }

  /** Add a tile that is `ratio` times as wide as high. */
  add(tile, ratio) {
    const own = Math.min(WIDEST, Math.max(SLIMMEST, ratio || 1));
    tile.style.setProperty("--r", own);
    this.tiles.push({ tile, ratio: own });
    if (this.width) this.append(tile, own);
  }

  /** Remove all. */
  clear() {
    this.tiles = [];
    this.restart();
  }

  /** Fill the rows anew if the width has changed; the focus stays. */
  arrange() {
    const width = this.container.clientWidth;
    if (!width || width === this.width) return;
    const focused = this.container.contains(document.activeElement) ? document.activeElement : null;
    this.width = width;
    this.restart();
    for (const { tile, ratio } of this.tiles) this.append(tile, ratio);
    focused?.focus({ preventScroll: true });
  }

  restart() {
    this.container.replaceChildren();
    this.row = null;
  }

  append(tile, ratio) {
    if (this.row === null) {
      this.row = make("div", { className: "row", role: "presentation" });
      this.sum = 0;
      this.container.append(this.row);
    }
    this.row.querySelector(".rest")?.remove();
    this.row.append(tile);
    this.sum += ratio;
    const free = this.width - GAP * (this.row.children.length - 1);
    const missing = free / this.height(this.width) - this.sum;
    if (missing <= 0.15) this.row = null;
    else {
      const rest = make("div", { className: "rest" });
      rest.style.setProperty("--r", missing);
      this.row.append(rest);
    }
  }
}
