/**
 * The page: asks what the server can do, then shows what the address says.
 *
 * The address is the one state (route.js): everything a user does changes it, and the page follows.
 */

import { albumOf, albums, collecting } from "./albums.js";
import { ask } from "./api.js";
import { byId, icon, make } from "./dom.js";
import { drawFilters, filtering } from "./filters.js";
import { intake } from "./intake.js";
import { notice, settle } from "./notice.js";
import { problem } from "./problem.js";
import { Results } from "./results.js";
import { focus } from "./roving.js";
import { current, filtersOf, go, listen, read, write } from "./route.js";
import { draw, searchbar } from "./searchbar.js";
import { forget, restore, subjectOf } from "./subject.js";
import { Texts } from "./texts.js";
import { Viewer } from "./viewer.js";
import { Wall } from "./wall.js";

const IDEAS = ["people", "a dog in the snow", "children playing", "water", "a red car", "mountains"];

async function start() {
  let info;
  try {
    [info] = await Promise.all([ask("info"), restore()]);
  } catch (error) {
    byId("nothing").replaceChildren(problem("The page cannot start", error.message, () => location.reload()));
    byId("nothing").hidden = false;
    return;
  }
  new Page(info);
}

class Page {
  constructor(info) {
    this.info = info;
    this.scrolls = new Map();
    this.photos = current();
    const adopt = () => { if (this.viewer.dialog.open) this.viewer.adopt(this.list()); };
    this.viewer = new Viewer(info, () => this.wall);
    this.wall = info.index && new Wall(adopt);
    this.results = info.index && new Results(adopt);
    this.texts = info.corpus && new Texts(info.corpus);
    byId("tabs").hidden = !info.corpus;
    if (info.index) {
      searchbar(info);
      filtering();
      collecting(() => headings(current()));
      this.follow();
    } else {
      byId("words").disabled = true;
      byId("words").placeholder = "No index is loaded";
    }
    intake((subject) => this.take(subject));
    byId("skip").onclick = () => byId("main").focus();
    listen((state, before, moved) => this.show(state, before, moved));
    this.show(current(), current(), true);
  }

  /** A photo the user brought: search by it, or look into it where there is nothing to search. */
  take(subject) {
    if (this.info.index) go({ tab: "photos", like: subject.id, box: null, view: "" });
    else go({ view: subject.id });
  }

  show(state, before, moved) {
    const texts = this.texts !== null && (state.tab === "texts" || !this.info.index);
    const scene = sceneOf(state);
    if (scene !== sceneOf(before)) this.scrolls.set(sceneOf(before), scrollY);
    this.tabs(state, texts);
    const search = albumOf(state)?.name ?? (state.q || (state.like ? "Like a photo" : "Photos"));
    const about = texts ? state.question || "Texts" : search;
    document.title = `${about} · mmgem`;
    byId("texts").hidden = !texts;
    byId("photos").hidden = texts || !this.info.index;
    byId("nothing").hidden = texts || Boolean(this.info.index);
    if (texts) this.texts.show(state);
    else if (this.info.index) this.find(state, moved);
    else none();
    if (scene !== sceneOf(before)) scrollTo(0, moved ? this.scrolls.get(scene) ?? 0 : 0);
    this.look(state, before);
  }

  tabs(state, texts) {
    if (!texts) this.photos = state;
    byId("tab-photos").href = `#${write({ ...this.photos, view: "", tab: "photos" })}`;
    byId("tab-texts").href = `#${write({ ...state, view: "", tab: "texts" })}`;
    const [shown, other] = texts ? ["tab-texts", "tab-photos"] : ["tab-photos", "tab-texts"];
    byId(shown).setAttribute("aria-current", "page");
    byId(other).removeAttribute("aria-current");
  }

  /** The wall, or the hits of a query. */
  find(state, moved) {
    const searching = state.q !== "" || state.like !== "";
    draw(state, moved);
    drawFilters(state);
    headings(state);
    this.wall.show(filtersOf(state));
    byId("wall").hidden = searching;
    byId("results").hidden = byId("options").hidden = !searching;
    byId("hint").hidden ||= !searching;
    if (searching) this.results.show(state);
    else this.results.stop();
    this.wall.rows.arrange();
    this.results.rows.arrange();
  }

  /** The photos that next and previous go through. */
  list() {
    if (!this.info.index) return [];
    return byId("results").hidden ? this.wall.photos : this.results.hits;
  }

  /** Open, turn or close the viewer as `state` says. */
  look(state, before) {
    if (state.view === "") {
      if (before.view === "") return;
      this.viewer.shut();
      const shown = document.querySelector(`main .tile[data-id="${CSS.escape(before.view)}"]:not([hidden] *) button`);
      if (shown) focus(shown);
      return;
    }
    const list = (this.viewer.list = this.list());
    if (this.viewer.dialog.open && this.viewer.subject.id === state.view) return;
    const subject = list.find(({ id }) => id === state.view) ?? subjectOf(state.view);
    if (subject) this.viewer.open(subject);
    else go({ view: "" }, { replace: true });
  }

  /** The index may grow while the page is open: look when one comes back to it. */
  follow() {
    let { generation } = this.info.index;
    addEventListener("focus", async () => {
      const { index } = await ask("info").catch(() => ({ index: null }));
      if (!index || index.generation === generation) return;
      generation = index.generation;
      forget();
      this.results.forget();
      notice("grown", "The photos have changed.", ["Show", () => {
        settle("grown");
        this.wall.reset();
        this.results.stop();
        this.show(current(), current(), true);
      }]);
    });
  }
}

/** What has a scroll position of its own. */
function sceneOf(state) {
  const { tab, q, like, box, regions, rerank, k } = state;
  if (tab === "texts") return tab;
  return JSON.stringify([filtersOf(state), ...(q || like ? [q, like, box, regions, rerank, k] : [])]);
}

/** Which album this is; over the wall the albums, and ideas what to look for among what passes the filters. */
function headings(state) {
  byId("album-open").querySelector("span").textContent = albumOf(state)?.name ?? "Albums";
  const kept = albums().map(({ name, hash }) => make("a", { href: `#${hash}`, className: "idea" }, icon("album"), name));
  const link = (q) => make("a", { href: `#${write({ ...read(""), ...filtersOf(state), q })}`, className: "idea" }, q);
  byId("ideas").replaceChildren(...kept, ...IDEAS.map(link));
}

function none() {
  if (byId("nothing").childElementCount) return;
  byId("nothing").append(
    make("h1", {}, "No photos are loaded"),
    make("p", {}, "Make an index of a folder and serve it:"),
    make("pre", {}, "mmgem index ~/Pictures --out photos.idx --regions 20\nmmgem serve photos.idx"),
    make("p", {}, "Or look into a single photo: drop it here, paste it, or ",
      make("button", { type: "button", className: "link", onclick: () => byId("pick").click() }, "pick one"), "."),
  );
}

start();
