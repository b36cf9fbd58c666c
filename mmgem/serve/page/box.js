/** The box a user draws over a photo: by mouse, finger or keys. Its edges are shares of the photo, 0 to 1. */

import { byId, place } from "./dom.js";

const LEAST = 0.02; // of a side; less is a slip of the finger
const STEP = 0.02;

/** `change()` is called when the box has changed, `enter()` for the Enter key on it. */
export class Box {
  constructor(change, enter) {
    this.change = change;
    this.frame = byId("frame");
    this.node = byId("box");
    this.veil = byId("veil");
    this.value = null;
    this.frame.addEventListener("pointerdown", (event) => this.press(event));
    this.frame.addEventListener("pointermove", (event) => this.drag(event));
    for (const end of ["pointerup", "pointercancel"]) this.frame.addEventListener(end, (event) => this.release(event));
    this.node.addEventListener("keydown", (event) => this.key(event, enter));
  }

  /** Put the box at `value`, [x0, y0, x1, y1], or take it away with null. */
  set(value) {
    const focused = document.activeElement === this.node;
    this.value = value;
    this.lay();
    if (value === null && focused) this.frame.focus();
    this.change();
  }

  /** A box in the middle, with the focus on it. */
  start() {
    if (this.value === null) this.set([0.3, 0.3, 0.7, 0.7]);
    this.node.focus();
  }

  lay() {
    this.node.hidden = this.veil.hidden = this.value === null;
    if (this.value === null) return;
    place(this.node, this.value, 1, 1);
    place(this.veil, this.value, 1, 1);
    const [left, top, right, bottom] = this.value.map((share) => Math.round(100 * share));
    const label = `Box from ${left}% to ${right}% across, ${top}% to ${bottom}% down`;
    this.node.setAttribute("aria-label", label);
  }

  press(event) {
    if (event.button !== 0 || !event.isPrimary) return this.cancel();
    const at = this.at(event);
    const edge = event.target.dataset?.edge;
    this.before = this.value;
    if (edge) this.hold = anchored(this.value, edge);
    else if (this.node.contains(event.target)) this.hold = { from: at, moved: this.value };
    else this.hold = { corner: at };
    this.frame.setPointerCapture(event.pointerId);
    event.preventDefault();
    return (edge || this.hold.moved ? this.node : this.frame).focus({ preventScroll: true });
  }

  drag(event) {
    if (!this.hold || !event.isPrimary) return;
    const at = this.at(event);
    const { from, moved, corner } = this.hold;
    this.value = moved ? shifted(moved, at[0] - from[0], at[1] - from[1]) : spanned(corner, at);
    this.lay();
  }

  release(event) {
    if (!this.hold || !event.isPrimary) return;
    const still = this.value === this.before;
    this.hold = null;
    if (still) return;
    if (event.type === "pointercancel" || small(this.value)) this.set(this.before);
    else this.set(this.value);
  }

  /** A second finger: this is no drawing. */
  cancel() {
    if (!this.hold) return;
    this.hold = null;
    this.set(this.before);
  }

  key(event, enter) {
    const across = { ArrowLeft: -STEP, ArrowRight: STEP }[event.key] ?? 0;
    const down = { ArrowUp: -STEP, ArrowDown: STEP }[event.key] ?? 0;
    const [x0, y0, x1, y1] = this.value;
    if (event.key === "Enter") enter();
    else if (event.key === "Delete" || event.key === "Backspace") this.set(null);
    else if (!across && !down) return;
    else if (event.shiftKey) this.set([x0, y0, clamp(x1 + across, x0 + LEAST), clamp(y1 + down, y0 + LEAST)]);
    else this.set(shifted(this.value, across, down));
    event.preventDefault();
    event.stopPropagation();
  }

  at({ clientX, clientY }) {
    const { left, top, width, height } = this.frame.getBoundingClientRect();
    return [clamp((clientX - left) / width), clamp((clientY - top) / height)];
  }
}

const clamp = (share, low = 0) => Math.min(1, Math.max(low, share));

const small = ([x0, y0, x1, y1]) => x1 - x0 < LEAST || y1 - y0 < LEAST;

const spanned = ([ax, ay], [bx, by]) => [Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by)];

function shifted([x0, y0, x1, y1], across, down) {
  const dx = Math.min(1 - x1, Math.max(-x0, across));
  const dy = Math.min(1 - y1, Math.max(-y0, down));
  return [x0 + dx, y0 + dy, x1 + dx, y1 + dy];
}

/** What a handle at `edge` (nw, ne, sw, se) is pulled against: the corner opposite. */
function anchored([x0, y0, x1, y1], edge) {
  return { corner: [edge.includes("w") ? x1 : x0, edge.includes("n") ? y1 : y0] };
}
