/** One photo, large, with everything that can be asked about it. A dialog: the focus stays in it until it closes. */

import { dropped } from "./api.js";
import { classing } from "./classes.js";
import { fragment, moves, playing, span } from "./clip.js";
import { describing, pixels } from "./describe.js";
import { byId, typing } from "./dom.js";
import { heating } from "./heat.js";
import { parting } from "./parts.js";
import { current, go, leave } from "./route.js";
import { stage } from "./stage.js";
import { baseName, told } from "./tile.js";
import { token } from "./token.js";

/**
 * The page's `#viewer`, with `list`: the photos that next and previous go through.
 * `searchable`: there is an index, and `wall()` its photos.
 */
export class Viewer {
  constructor(searchable, wall) {
    this.dialog = byId("viewer");
    this.list = [];
    this.wall = wall;
    const looking = () => ({ subject: this.subject, signal: this.stop.signal });
    const { box, reset } = describing(looking, searchable, () => this.boxed());
    this.box = box;
    const heat = heating(looking, () => parts.hide());
    const parts = parting(looking, () => heat.hide(), (at) => box.set(at));
    this.classes = classing(looking, (subject, signal) => box.value && pixels(subject, box.value, signal));
    this.clip = playing(looking);
    this.reset = (subject) => {
      reset(subject, subject.box);
      for (const tool of [heat, parts, this.classes, this.clip]) tool.reset(subject);
    };
    byId("close").onclick = () => this.close();
    byId("previous").onclick = () => this.turn(-1);
    byId("next").onclick = () => this.turn(1);
    this.dialog.onclose = () => { if (current().view) this.close(); }; // by the Escape key
    this.dialog.onkeydown = (event) => this.key(event);
  }

  /** Show `subject`. */
  async open(subject) {
    this.stop?.abort();
    this.stop = new AbortController();
    this.subject = subject;
    const { signal } = this.stop;
    if (!this.dialog.open) {
      this.dialog.showModal();
      byId("frame").focus();
    }
    this.reset(subject);
    this.head();
    try {
      await stage(subject, signal);
      this.head(); // the size may be known now
    } catch (error) {
      if (dropped(error) || signal.aborted) return;
      byId("stage-error").textContent = error.message;
      byId("stage-error").hidden = false;
    }
  }

  /** Close: the address says already that nothing is open. */
  shut() {
    this.stop?.abort();
    this.clip.stop();
    this.dialog.close();
  }

  /** The list has come, or grown: the photo that is shown may be in it. */
  adopt(list) {
    this.list = list;
    const found = list.find(({ id }) => id === this.subject.id);
    if (found && found !== this.subject) {
      this.subject = Object.assign(found, { ...this.subject, ...found });
      if (found.box && this.box.value === null) this.reset(found);
    }
    this.head();
  }

  boxed() {
    this.dialog.classList.toggle("boxed", this.box?.value != null);
    this.classes?.reset();
  }

  close() {
    leave({ view: "" });
  }

  head() {
    const { subject, list } = this;
    const at = list.indexOf(subject);
    const name = baseName(subject.name) || "Photo";
    byId("photo-name").textContent = name;
    byId("frame").setAttribute("aria-label", `Photo ${name}`);
    byId("large").alt = name;
    const facts = [];
    if (subject.rank) facts.push(`${subject.rank} of ${subject.of}`, told(subject));
    else if (at >= 0) facts.push(`photo ${(at + 1).toLocaleString()}`);
    if (moves(subject)) facts.push(span(subject));
    if (subject.width) facts.push(`${subject.width} × ${subject.height}`);
    byId("photo-facts").textContent = facts.join(" · ");
    const link = byId("original");
    if (subject.upload === null ? token() === null : subject.url) link.href = subject.url ?? `photos/${subject.id}${moves(subject) ? fragment(subject) : ""}`;
    else link.removeAttribute("href"); // a link sends no token
    link.title = subject.name;
    this.clip.head(subject);
    byId("previous").disabled = at <= 0;
    byId("next").disabled = at < 0 || (at === list.length - 1 && !this.grows());
  }

  /** Whether the list may have more photos than are known. */
  grows() {
    return this.list.length > 0 && this.list === this.wall()?.photos && this.wall().next !== null;
  }

  async turn(by) {
    const at = this.list.indexOf(this.subject);
    if (at < 0 || at + by < 0) return;
    if (at + by >= this.list.length && this.grows()) await this.wall().more();
    const to = this.list[at + by];
    if (to) go({ view: to.id }, { replace: true });
  }

  key(event) {
    if (typing() || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowRight") this.turn(1);
    else if (event.key === "ArrowLeft") this.turn(-1);
    else if (event.key === "b") this.box.start();
    else return;
    event.preventDefault();
  }
}
