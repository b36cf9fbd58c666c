"""``mmgem corpus``: a model that is its own search engine over a corpus of texts (Self-Retrieval), or over a
folder of them that it has not learned."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmgem.cli.inputs import DeviceOption, Precision, PrecisionOption, check_device, quiet_libraries
from mmgem.cli.output import JsonOption, note, print_json
from mmgem.cli.terms import note_terms
from mmgem.cli.train import train
from mmgem.errors import DataError, UsageError

if TYPE_CHECKING:
    from mmgem.self_retrieval.model import SelfRetrieval
    from mmgem.self_retrieval.retriever import ScoredPassage
    from mmgem.self_retrieval.text_search import TextHit, TextSearch

PASSAGES_READ = 50
"""Passages that the scores of documents are summed over."""

app = typer.Typer(add_completion=False, rich_markup_mode=None)
app.command("train", short_help="Learn a corpus, as a recipe says (the same as mmgem train).")(train)

ModelOption = Annotated[
    str, typer.Option("--model", "-m", metavar="M", help="A model that has learned a corpus (corpus train).")
]
LearnedOption = Annotated[
    str | None,
    typer.Option("--model", "-m", metavar="M", help="A model that has learned a corpus (corpus train)."),
]
IndexOption = Annotated[
    Path | None,
    typer.Option("--index", metavar="IDX", help="In its place: an index of any folder (corpus index)."),
]
ScoringOption = Annotated[
    str | None,
    typer.Option(
        "--scoring", metavar="KIND", help="judged, paper or named, in the place of the corpus's own."
    ),
]
DocumentsOption = Annotated[
    bool, typer.Option("--documents", help="Documents (all under one title), by the sum of their passages.")
]
KOption = Annotated[int, typer.Option("-k", min=1, metavar="N", help="How many passages.")]


@app.callback()
def _corpus() -> None:
    """Search, question and extend a corpus of texts that a model has learned."""


@app.command("search", short_help="The passages that answer a question.")
def search(
    question: Annotated[str, typer.Argument(metavar="TEXT", help="The question.")],
    model: LearnedOption = None,
    index: IndexOption = None,
    k: KOption = 5,
    scoring: ScoringOption = None,
    documents: DocumentsOption = False,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Find passages: score, a tab, the id, a tab, the title, a tab, how the text begins; best first.

    With --json: {"query", "hits": [{"id", "title", "text", "score", "title_prob", "passage_prob",
    "rejection", "likelihood"}]}: the probabilities of the title and of the passage under it, that the model
    finds no answer in it, and log P(question | passage). With --documents a line is a score, a title and the
    ids of the passages it is the sum of, and --json {"query", "documents": [{"title", "score", "passages"}]}.

    With --index: score, a tab, file:line, a tab, the sentence that answers best; with --json a hit is {"id",
    "title", "text", "score", "file", "sentence", "line"}.
    """
    if (texts := _open_index(model, index, device, precision)) is not None:
        if scoring is not None or documents:
            raise UsageError("--scoring and --documents are of a model that has learned a corpus")
        text_hits = texts.search(_text(question), k)
        if as_json:
            print_json({"query": question, "hits": [hit.to_json() for hit in text_hits]})
        else:
            _show_texts(text_hits)
        return
    assert model is not None
    engine = _load(model, device, precision, scoring)
    if documents:
        from mmgem.self_retrieval.document_ranking import rank_documents

        (hits,) = engine.search([_text(question)], PASSAGES_READ)
        ranked = rank_documents(hits)[:k]
        if as_json:
            print_json({"query": question, "documents": [document.to_json() for document in ranked]})
        else:
            for document in ranked:
                print(f"{document.score:.3f}\t{document.title}\t{' '.join(document.passages)}")
        return
    (hits,) = engine.search([_text(question)], k)
    if as_json:
        print_json({"query": question, "hits": [hit.to_json() for hit in hits]})
    else:
        _show(hits)


@app.command("ask", short_help="The answer to a question, with its passages.")
def ask(
    question: Annotated[str, typer.Argument(metavar="TEXT", help="The question.")],
    model: LearnedOption = None,
    index: IndexOption = None,
    k: KOption = 3,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Answer a question from the best passage that holds an answer, and show the passages.

    With --json: {"query", "answer" (null if the passages hold none), "source" (a passage's id), "hits"} as in
    search. With --index the sentence that answers is quoted, with its file and line: {"query", "answer" (null
    if the model has not learned to answer), "sentence", "file", "line", "hits"}.
    """
    if (texts := _open_index(model, index, device, precision)) is not None:
        told = texts.ask(_text(question), k)
        if as_json:
            source = {name: getattr(told.source, name) for name in ("sentence", "file", "line")}
            text_hits = [hit.to_json() for hit in told.hits]
            print_json({"query": question, "answer": told.text, **source, "hits": text_hits})
            return
        print(told.source.sentence if told.text is None else f"{told.text}\n{told.source.sentence}")
        print(told.source.place)
        _show_texts(told.hits)
        return
    assert model is not None
    engine = _load(model, device, precision)
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
    data: Annotated[Path, typer.Option(metavar="Q", help="Queries with the ids of their passages.")],
    baselines: Annotated[
        bool, typer.Option("--baselines", help="BM25, embeddings and MiniLM beside it, and their mixtures.")
    ] = False,
    answers: Annotated[bool, typer.Option("--answers", help="Answers too: exact match and F1.")] = False,
    scoring: ScoringOption = None,
    documents: DocumentsOption = False,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Measure a model on queries. All figures but seconds are percent, those of ranking with their standard
    errors over the queries.

    With --json: {"H@1", "H@5", "H@20", "MRR@5", "H@1 error" and so on, "queries", "seconds_per_query"}, with
    --answers {"EM", "F1"} as well, with --baselines "baselines": {name: the same}.
    """
    from mmgem.self_retrieval.passages import load_queries

    engine = _load(model, device, precision, scoring)
    queries = load_queries(data, {p.id for p in engine.corpus.passages})
    scores = engine.measure(queries, answers=answers, baselines=baselines, documents=documents)
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
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Add passages: searchable at once, without training.

    One with the id of a passage that is there takes its place; one that is there word by word is passed
    over; what a text or Markdown file no longer has is removed. The tries grow by what is new; the model has
    not memorised it, so it is found by what it can tell from the names and from reading. With --json:
    {"added", "replaced", "unchanged", "removed", "passages", "seconds"}.
    """
    from mmgem.self_retrieval.corpus_changes import document_of
    from mmgem.self_retrieval.passages import Passage, is_documents, load_corpus

    started = time.monotonic()
    engine = _load(model, device, precision)
    skipped: list[tuple[Path, str]] = []
    passages: list[Passage] = []
    documents: set[str] = set()
    for file in files:
        read = load_corpus(file, skipped)
        passages += read
        if is_documents(file):
            documents |= {document_of(p.id) for p in read}
    for path, reason in skipped:
        note(f"skipped {path}: {reason}")
    change = engine.add(passages, documents)
    if as_json:
        counts = {name: getattr(change, name) for name in ("added", "replaced", "unchanged", "removed")}
        seconds = round(time.monotonic() - started, 2)
        print_json({**counts, "passages": len(change.passages), "seconds": seconds})
        return
    others = f"{change.replaced} replaced, {change.unchanged} unchanged, {change.removed} removed"
    print(f"{change.added} passages added, {others}, {len(change.passages)} in all")


@app.command("remove", short_help="Take passages out of the corpus.")
def remove(
    ids: Annotated[list[str], typer.Argument(metavar="IDS", help="Ids of passages, or names of documents.")],
    model: ModelOption,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Remove passages: those with these ids, or all of a document (guide.md: guide.md#1, guide.md#2, ...).

    With --json: {"removed", "passages"}.
    """
    change = _load(model, device, precision).remove(ids)
    if as_json:
        print_json({"removed": change.removed, "passages": len(change.passages)})
    else:
        print(f"{change.removed} passages removed, {len(change.passages)} in all")


@app.command("index", short_help="Make any folder of texts searchable, without training.")
def index_folder(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Text, Markdown, HTML, PDF, source code.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="IDX", help="Folder of the index.")],
    model: Annotated[
        str, typer.Option("--model", "-m", metavar="M", help="A model that embeds and writes texts.")
    ],
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Make an index of all texts under DIR, or bring it up to date, for corpus search and ask --index.

    Text and Markdown files, HTML, PDF (pip install 'mmgem[pdf]') and the comments and docstrings of source
    code. Only new and changed files are embedded, and a run that was stopped goes on where it was. Files that
    cannot be read are listed and left out, and tried again by the next run. With --json: {"files",
    "passages", "embedded", "unchanged", "removed", "failed": [{"file", "reason"}], "seconds"}.
    """
    check_device(device)
    quiet_libraries()
    from mmgem.checkpoints.model_folder import load_model
    from mmgem.checkpoints.resolve import fingerprint, lasting_name, resolve
    from mmgem.self_retrieval.text_index import TextModel, update_text_index
    from mmgem.self_retrieval.text_search import text_model
    from mmgem.utils.progress import track

    note_terms(model)
    source = resolve(model)

    def load() -> TextModel:
        network, tokenizer = load_model(source)
        return text_model(network.to(device).to_inference_dtype(precision), tokenizer)

    progress = partial(track, label="Indexing", unit=" files")
    report = update_text_index(out, folder, lasting_name(model), fingerprint(source), load, progress)
    for path, reason in report.failed:
        note(f"skipped {path}: {reason}")
    if not report.files:
        raise DataError(f"{folder}: none of the {len(report.failed)} files could be read")
    if as_json:
        failed = [{"file": str(path), "reason": reason} for path, reason in report.failed]
        names = ("files", "passages", "embedded", "unchanged", "removed")
        counts = {name: getattr(report, name) for name in names}
        print_json({**counts, "failed": failed, "seconds": round(report.seconds, 2)})
        return
    print(
        f"{out}: {report.passages} passages of {report.files} files ({report.embedded} embedded, "
        f"{report.unchanged} unchanged, {report.removed} removed, {len(report.failed)} not readable), "
        f"{report.seconds:.1f} s"
    )


def _open_index(
    model: str | None, index: Path | None, device: str, precision: Precision
) -> TextSearch | None:
    if (model is None) == (index is None):
        raise UsageError("give one of --model and --index")
    if index is None:
        return None
    check_device(device)
    quiet_libraries()
    from mmgem.self_retrieval.text_search import TextSearch

    return TextSearch.open(index, device, precision)


def _show_texts(hits: list[TextHit]) -> None:
    for hit in hits:
        print(f"{hit.score:.3f}\t{hit.place}\t{hit.sentence}")


def _cell(row: dict[str, float], column: str) -> str:
    if column not in row:
        return ""
    error = row.get(f"{column} error")
    return f"{row[column]:.4g}" if error is None else f"{row[column]:.1f} ± {error:.1f}"


def _load(model: str, device: str, precision: Precision, scoring: str | None = None) -> SelfRetrieval:
    check_device(device)
    quiet_libraries()
    from mmgem.config import from_dict, to_dict
    from mmgem.self_retrieval.model import Scoring, SelfRetrieval

    note_terms(model)
    engine = SelfRetrieval.from_pretrained(model, device, precision)
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
        print(f"{hit.score:.3f}\t{hit.id}\t{hit.title}\t{' '.join(hit.text[:80].split())}")
