"""``mmgem corpus``: a model that is its own search engine over a corpus of texts (Self-Retrieval)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmgem.cli.inputs import quiet_libraries
from mmgem.cli.output import JsonOption, note, print_json
from mmgem.cli.terms import note_terms
from mmgem.cli.train import train
from mmgem.errors import UsageError

if TYPE_CHECKING:
    from mmgem.self_retrieval.model import SelfRetrieval
    from mmgem.self_retrieval.retriever import ScoredPassage

app = typer.Typer(add_completion=False, rich_markup_mode=None)
app.command("train", short_help="Learn a corpus, as a recipe says (the same as mmgem train).")(train)

ModelOption = Annotated[
    str, typer.Option("--model", "-m", metavar="M", help="A model that has learned a corpus (corpus train).")
]
ScoringOption = Annotated[
    str | None,
    typer.Option(
        "--scoring", metavar="KIND", help="judged, paper or named, in the place of the corpus's own."
    ),
]
KOption = Annotated[int, typer.Option("-k", min=1, metavar="N", help="How many passages.")]


@app.callback()
def _corpus() -> None:
    """Search, question and extend a corpus of texts that a model has learned."""


@app.command("search", short_help="The passages that answer a question.")
def search(
    question: Annotated[str, typer.Argument(metavar="TEXT", help="The question.")],
    model: ModelOption,
    k: KOption = 5,
    scoring: ScoringOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find passages: score, a tab, the id, a tab, the title, a tab, how the text begins; best first.

    With --json: {"query", "hits": [{"id", "title", "text", "score", "title_prob", "passage_prob",
    "rejection", "likelihood"}]}: the probabilities of the title and of the passage under it, that the model
    finds no answer in it, and log P(question | passage).
    """
    engine = _load(model, scoring)
    (hits,) = engine.search([_text(question)], k)
    if as_json:
        print_json({"query": question, "hits": [hit.to_json() for hit in hits]})
    else:
        _show(hits)


@app.command("ask", short_help="The answer to a question, with its passages.")
def ask(
    question: Annotated[str, typer.Argument(metavar="TEXT", help="The question.")],
    model: ModelOption,
    k: KOption = 3,
    as_json: JsonOption = False,
) -> None:
    """Answer a question from the best passage that holds an answer, and show the passages.

    With --json: {"query", "answer" (null if the passages hold none), "source" (a passage's id), "hits"} as in
    search.
    """
    engine = _load(model)
    answer = engine.ask(_text(question), k)
    if as_json:
        hits = [hit.to_json() for hit in answer.hits]
        print_json({"query": question, "answer": answer.text, "source": answer.source, "hits": hits})
        return
    print(answer.text if answer.text is not None else "no answer in these passages")
    _show(answer.hits)


@app.command("eval", short_help="Measure retrieval and answers on queries.")
def evaluate(
    model: ModelOption,
    data: Annotated[Path, typer.Option(metavar="Q.jsonl", help="Queries with the ids of their passages.")],
    baselines: Annotated[
        bool, typer.Option("--baselines", help="BM25, embeddings and MiniLM beside it, and their mixtures.")
    ] = False,
    answers: Annotated[bool, typer.Option("--answers", help="Answers too: exact match and F1.")] = False,
    scoring: ScoringOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a model on queries. All figures but seconds are percent, those of ranking with their standard
    errors over the queries.

    With --json: {"H@1", "H@5", "H@20", "MRR@5", "H@1 error" and so on, "queries", "seconds_per_query"}, with
    --answers {"EM", "F1"} as well, with --baselines "baselines": {name: the same}.
    """
    from mmgem.self_retrieval.passages import load_queries

    engine = _load(model, scoring)
    queries = load_queries(data, {p.id for p in engine.corpus.passages})
    scores = engine.measure(queries, answers=answers, baselines=baselines)
    if as_json:
        print_json(scores)
        return
    baseline_scores: dict[str, dict[str, float]] = scores.pop("baselines", {})
    rows = {"this model": scores, **baseline_scores}
    width = max(map(len, rows))
    columns = list(dict.fromkeys(c for row in rows.values() for c in row if not c.endswith(" error")))
    print(" " * width + "".join(f"  {c:>17}" for c in columns))
    for name, row in rows.items():
        cells = "".join(f"  {_cell(row, c):>17}" for c in columns)
        print(f"{name:<{width}}{cells}".rstrip())


@app.command("add", short_help="Put more passages into the corpus.")
def add(
    files: Annotated[list[Path], typer.Argument(metavar="FILES", help="JSONL, text, Markdown or folders.")],
    model: ModelOption,
    as_json: JsonOption = False,
) -> None:
    """Add passages: searchable at once, without training.

    One with the id of a passage that is there takes its place; one that is there word by word is passed
    over. The tries grow by what is new; the model has not memorised it, so it is found by what it can tell
    from the names and from reading. With --json: {"added", "replaced", "unchanged", "passages", "seconds"}.
    """
    from mmgem.self_retrieval.passages import load_corpus

    started = time.monotonic()
    engine = _load(model)
    skipped: list[tuple[Path, str]] = []
    passages = [p for file in files for p in load_corpus(file, skipped)]
    for path, reason in skipped:
        note(f"skipped {path}: {reason}")
    change = engine.add(passages)
    if as_json:
        counts = {name: getattr(change, name) for name in ("added", "replaced", "unchanged")}
        seconds = round(time.monotonic() - started, 2)
        print_json({**counts, "passages": len(change.passages), "seconds": seconds})
        return
    others = f"{change.replaced} replaced, {change.unchanged} unchanged"
    print(f"{change.added} passages added, {others}, {len(change.passages)} in all")


@app.command("remove", short_help="Take passages out of the corpus.")
def remove(
    ids: Annotated[list[str], typer.Argument(metavar="IDS", help="Ids of passages, or names of documents.")],
    model: ModelOption,
    as_json: JsonOption = False,
) -> None:
    """Remove passages: those with these ids, or all of a document (guide.md: guide.md#1, guide.md#2, ...).

    With --json: {"removed", "passages"}.
    """
    change = _load(model).remove(ids)
    if as_json:
        print_json({"removed": change.removed, "passages": len(change.passages)})
    else:
        print(f"{change.removed} passages removed, {len(change.passages)} in all")


def _cell(row: dict[str, float], column: str) -> str:
    if column not in row:
        return ""
    error = row.get(f"{column} error")
    return f"{row[column]:.4g}" if error is None else f"{row[column]:.1f} ± {error:.1f}"


def _load(model: str, scoring: str | None = None) -> SelfRetrieval:
    quiet_libraries()
    from mmgem.config import from_dict, to_dict
    from mmgem.self_retrieval.model import Scoring, SelfRetrieval

    note_terms(model)
    engine = SelfRetrieval.from_pretrained(model)
    if scoring is not None:
        fields = {**to_dict(engine.corpus.scoring), "kind": scoring}
        engine.corpus.scoring = from_dict(Scoring, fields, "scoring")
    return engine


def _text(question: str) -> str:
    if not question.strip():
        raise UsageError("the question is empty")
    return question


def _show(hits: list[ScoredPassage]) -> None:
    for hit in hits:
        print(f"{hit.score:.3f}\t{hit.id}\t{hit.title}\t{hit.text[:80]}")
