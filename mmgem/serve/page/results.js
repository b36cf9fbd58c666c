/** Hits: asked for whenever the query changes, shown in their order. */

import { ask, dropped } from "./api.js";
import { byId, make } from "./dom.js";
import { problem } from "./problem.js";
import { filtersOf, go } from "./route.js";
import { anchor, roving } from "./roving.js";
import { Rows } from "./rows.js";
import { askAbout, indexed, subjectOf, termOf } from "./subject.js";
import { doubtful, loadSoon, tile } from "./tile.js";

const SIDE = 512; // pixels of a picture
const SLOW = 200; // ms; skeletons are shown for what takes longer
const KEPT = 20; // answers
const SHAPES = [1.5, 0.75, 1.33, 1.33, 0.67, 1.5, 1.33, 1.5, 0.75, 1.33]; // of skeletons
const SIDES = "(?:top|upper|bottom|lower|left|right|middle|cent(?:er|re))";
const PLACES = new RegExp(`\\s(?:at|in|on|to|near)\\s+(?:the\\s+)?(${SIDES}(?:[\\s-]+(?:left|right))?)\\W*$`, "i");

/** The hits of a query in the page's `#results`; `come()` is called when they are there. */
export class Results {
  constructor(come) {
    this.come = come;
    this.rows = new Rows(byId("results"), (width) => Math.min(300, Math.max(180, width / 5)));
    this.kept = new Map();
    this.key = "";
    this.hits = [];
    roving(byId("results"));
  }

  /** Show the hits of `state`; what is shown already stays. */
  async show(state) {
    const { q, like, box, regions, rerank, k } = state;
    const key = JSON.stringify([q, like, box, regions, rerank, k, filtersOf(state)]);
    if (key === this.key) return;
    this.stop();
    this.key = key;
    this.hits = [];
    const { signal } = (this.running = new AbortController());
    const slow = setTimeout(() => this.wait(), SLOW);
    try {
      const answer = this.kept.get(key) ?? (await search(state, signal));
      this.keep(key, answer);
      clearTimeout(slow);
      this.fill(state, answer, signal);
    } catch (error) {
      clearTimeout(slow);
      if (!dropped(error)) this.fail(error, state);
    } finally {
      if (this.running?.signal === signal) byId("progress").hidden = true;
    }
  }

  /** Nothing is searched for any more. */
  stop() {
    this.running?.abort();
    this.key = "";
    byId("progress").hidden = true;
  }

  /** The index has changed: forget answers. */
  forget() {
    this.kept.clear();
  }

  keep(key, answer) {
    this.kept.delete(key);
    this.kept.set(key, answer);
    if (this.kept.size > KEPT) this.kept.delete(this.kept.keys().next().value);
  }

  wait() {
    byId("progress").hidden = false;
    if (this.rows.tiles.length) byId("results").classList.add("old");
    else for (const ratio of SHAPES) this.rows.add(make("div", { className: "tile skeleton" }), ratio);
  }

  fill(state, answer, signal) {
    byId("results").classList.remove("old");
    const best = answer.hits[0]?.score ?? 1;
    const least = answer.hits.at(-1)?.score ?? 0;
    this.hits = answer.hits.map((hit, i) => {
      const share = best > 0 ? hit.score / best : (hit.score - least) / (best - least || 1);
      return { ...indexed(hit), rank: i + 1, of: answer.hits.length, share: Math.max(0, share) };
    });
    this.rows.clear();
    for (const hit of this.hits) {
      const made = tile(hit, null, hit);
      this.rows.add(made, (hit.width ?? 4) / (hit.height ?? 3));
      loadSoon(made, hit, SIDE, signal);
    }
    anchor(byId("results"));
    const ms = Math.max(1, Math.round(1000 * answer.seconds));
    const photos = answer.photos.toLocaleString();
    const found = `best ${this.hits.length} of ${photos} photos · ${ms} ms`;
    byId("found").textContent = this.hits.length ? found : "";
    if (this.hits.length && this.hits.every(doubtful)) byId("found").prepend(make("b", {}, "Probably no match"), " · ");
    if (!this.hits.length) byId("results").append(make("p", { className: "empty" }, nothing(answer, state)));
    this.hint(state, answer);
    this.come();
  }

  hint(state, { query }) {
    const words = placeWords(query.where);
    const place = state.q.match(PLACES)?.[1];
    const hint = byId("hint");
    hint.hidden = true;
    if (words) {
      hint.replaceChildren("Looking for ", make("b", {}, query.text), ` ${words} of each photo`);
      hint.hidden = false;
    } else if (place && !state.like && !state.regions && !byId("regions").disabled) {
      const search = () => go({ regions: true });
      const button = make("button", { type: "button", className: "link", onclick: search }, "Search regions");
      hint.replaceChildren(button, ` to look only at the ${place.toLowerCase()} of each photo.`);
      hint.hidden = false;
    }
  }

  fail(error, state) {
    this.key = "";
    this.hits = [];
    byId("results").classList.remove("old");
    byId("found").textContent = "";
    byId("hint").hidden = true;
    this.rows.clear();
    byId("results").append(problem("The search did not work", error.message, () => this.show(state)));
  }
}

async function search(state, signal) {
  const { q, k, regions, rerank, box } = state;
  const fields = { k, regions, filters: filtersOf(state) };
  if (state.like === "") return ask("search", { body: { text: q, rerank: rerank && !regions, ...fields }, signal });
  const subject = subjectOf(state.like);
  if (subject === null) throw new Error("That photo is not kept in this browser any more. Pick it again.");
  if (q === "") return askAbout(subject, "search", box ? { ...fields, box } : fields, signal);
  return ask("search", { body: { terms: [{ text: q }, await termOf(subject, box)], ...fields }, signal });
}

function placeWords(where) {
  if (!where) return "";
  const down = { "-1": "top", 0: "middle", 1: "bottom" }[where.down] ?? "";
  const across = { "-1": "left", 0: "middle", 1: "right" }[where.across] ?? "";
  const both = down === across ? down : [down, across].filter(Boolean).join(" ");
  return both && `in the ${both}`;
}

function nothing({ query, photos }, state) {
  if (!photos && Object.keys(filtersOf(state)).length) return "No photo passes the filters.";
  if (!photos) return "The index is empty: no photos to search.";
  return query.where ? "No region lies in that part of any photo." : "Nothing was found.";
}
