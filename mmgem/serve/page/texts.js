/** The corpus of texts: a question, its answer, and the passages it was looked for in. */

import { ask, dropped } from "./api.js";
import { byId, make } from "./dom.js";
import { problem } from "./problem.js";
import { current, go } from "./route.js";

const PASSAGES = 5;

/** The page's `#texts` over the corpus `/info` tells of. */
export class Texts {
  constructor(corpus) {
    const count = (n, what) => `${n.toLocaleString()} ${what}${n === 1 ? "" : "s"}`;
    byId("corpus-about").textContent =
      `The model has learned ${count(corpus.passages, "passage")} under ${count(corpus.titles, "title")}. ` +
      "It names the passages that may hold the answer, reads them, and answers from the first that does.";
    byId("question-form").onsubmit = (event) => {
      event.preventDefault();
      const question = byId("question").value.trim();
      if (question === current().question) this.asked = "";
      go({ question });
      this.show(current());
    };
  }

  /** Show the answer to the question of `state`. */
  async show({ question }) {
    if (document.activeElement !== byId("question")) byId("question").value = question;
    if (question === this.asked) return;
    this.stop?.abort();
    this.asked = question;
    const output = byId("answer");
    if (!question) return output.replaceChildren();
    const { signal } = (this.stop = new AbortController());
    output.replaceChildren(...waiting());
    byId("progress").hidden = false;
    try {
      const answer = await ask("corpus/ask", { body: { query: question, k: PASSAGES }, signal });
      output.replaceChildren(...draw(answer));
    } catch (error) {
      if (dropped(error)) return;
      this.asked = null;
      output.replaceChildren(problem("There is no answer", error.message, () => this.show(current())));
    } finally {
      if (this.stop.signal === signal) byId("progress").hidden = true;
    }
  }
}

function waiting() {
  const lines = (n) => Array.from({ length: n }, () => make("p", { className: "waiting" }));
  return [make("div", { className: "answer-card" }, ...lines(1)), make("div", { className: "passage" }, ...lines(4))];
}

function draw(answer) {
  const source = answer.hits.find((hit) => hit.id === answer.source);
  const card = make("div", { className: "answer-card" });
  if (answer.answer === null) {
    const why = "The model read these passages and found none that answers the question.";
    card.append(make("p", { className: "answer none" }, "No answer"), make("p", { className: "quiet" }, why));
  } else {
    const from = make("p", { className: "quiet" }, "from ", make("b", {}, source?.title ?? "a passage"));
    card.append(make("p", { className: "answer" }, answer.answer), from);
  }
  card.append(make("p", { className: "seconds" }, `${answer.seconds.toFixed(1)} s`));
  const passages = answer.hits.map((hit, i) => passage(hit, i + 1, hit === source ? answer.answer : null));
  return [card, make("h2", {}, "Passages, best first"), ...passages, explanation()];
}

function passage(hit, rank, answer) {
  const text = make("p", { className: "passage-text" }, ...marked(hit.text, answer));
  const figures = make(
    "dl", {},
    figure("Names the title", percent(hit.title_prob), hit.title_prob),
    figure("Names the passage", percent(hit.passage_prob), hit.passage_prob),
    figure("Finds no answer in it", percent(hit.rejection), hit.rejection, true),
    figure("Score", hit.score > 0 && hit.score < 0.01 ? "<0.01" : hit.score.toFixed(2)),
  );
  const title = make("h3", {}, make("span", {}, String(rank)), hit.title);
  return make("article", { className: answer === null ? "passage" : "passage source" }, title, text, figures);
}

function figure(name, value, share = null, against = false) {
  if (value === null) return null;
  const bar = share === null ? null : make("span", { className: against ? "meter against" : "meter" }, make("i"));
  if (bar) bar.firstChild.style.width = `${100 * share}%`;
  return make("div", {}, make("dt", {}, name), make("dd", {}, bar, value));
}

const percent = (share) => (share === null ? null : share > 0 && share < 0.01 ? "<1%" : `${Math.round(100 * share)}%`);

/** `text` with the first place that says `answer` marked. */
function marked(text, answer) {
  const at = answer ? text.toLowerCase().indexOf(answer.toLowerCase()) : -1;
  if (at < 0) return [text];
  const end = at + answer.length;
  return [text.slice(0, at), make("mark", {}, text.slice(at, end)), text.slice(end)];
}

function explanation() {
  const terms = [
    ["Names the title, the passage",
      "The model is its own index: it spells out a title, then the beginning of a passage, that it thinks holds the " +
      "answer. How sure it was of each; nothing if the passage was found by its embedding alone."],
    ["Finds no answer in it",
      "The model then reads the passage. How likely it is to say “cannot extract answer”: high means it rejects it."],
    ["Score", "What the passages are ordered by; it puts the others together. Compare it within one question only."],
  ];
  const rows = terms.flatMap(([term, told]) => [make("dt", {}, term), make("dd", {}, told)]);
  const summary = make("summary", {}, "What the figures mean");
  return make("details", { className: "explain" }, summary, make("dl", {}, ...rows));
}
