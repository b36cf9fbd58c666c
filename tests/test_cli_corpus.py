"""``mmgem corpus``: learn, search, ask, measure, add, remove, on a toy model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import toys

from mmgem.checkpoints.model_folder import save_model
from mmgem.cli.main import main


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return toys.corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, data: tuple[Path, Path]) -> Path:
    folder = tmp_path_factory.mktemp("run")
    recipe = folder / "recipe.toml"
    lm = toys.base_models(folder)[0]
    recipe.write_text(f"""
[self_retrieval]
passages = "{data[0]}"
queries = ["{data[1]}"]
batch_size = 16
[init]
llm = "{lm}"
[preprocessing]
size = 32
max_text_tokens = 200
[model]
dim = 8
encoder = {{ kind = "none", config = {{ size = 32 }} }}
[train]
out = "{folder / "out"}"
threads = 1
""")
    assert main(["corpus", "train", str(recipe)]) == 0
    return folder / "out" / "model"


@pytest.fixture
def run(learned: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[str, str]]:
    def command(*argv: object) -> tuple[str, str]:
        code = main(["corpus", *map(str, argv), "--model", str(learned)])
        out, err = capfd.readouterr()
        assert code == 0, err
        return out, err

    return command


def test_search(run: Callable[..., tuple[str, str]]) -> None:
    told = json.loads(run("search", "the dog runs", "-k", 4, "--json")[0])
    assert told["query"] == "the dog runs" and len(told["hits"]) == 4
    fields = ["id", "title", "text", "score", "title_prob", "passage_prob", "rejection", "likelihood"]
    assert list(told["hits"][0]) == fields
    lines = run("search", "the dog runs", "-k", 4)[0].splitlines()
    assert [line.split("\t")[1] for line in lines] == [hit["id"] for hit in told["hits"]]
    halved = json.loads(run("search", "the dog runs", "-k", 4, "--json", "--precision", "bfloat16")[0])
    scores = {hit["id"]: hit["score"] for hit in told["hits"]}
    assert {hit["id"]: hit["score"] for hit in halved["hits"]} == pytest.approx(scores, abs=0.05)


def test_ask(run: Callable[..., tuple[str, str]]) -> None:
    told = json.loads(run("ask", "the dog runs", "--json")[0])
    assert list(told) == ["query", "answer", "source", "hits"] and len(told["hits"]) == 3
    assert (told["answer"] is None) == (told["source"] is None)
    first = run("ask", "the dog runs")[0].splitlines()[0]
    assert first == (told["answer"] if told["answer"] is not None else "no answer in these passages")


def test_eval(
    run: Callable[..., tuple[str, str]], data: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = json.loads(run("eval", "--data", data[1], "--json")[0])
    measures = ["H@1", "H@5", "H@20", "MRR@5"]
    errors = [f"{name} error" for name in measures]
    assert list(told) == [*measures, *errors, "queries", "seconds_per_query"]
    assert told["queries"] == 18 and 0 <= told["H@1"] <= told["MRR@5"] <= told["H@5"] <= 100

    def letters(texts: list[str]) -> np.ndarray:
        counts = np.array([[t.lower().count(c) + 0.1 for c in "aeioust"] for t in texts], np.float32)
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)

    monkeypatch.setattr("mmgem.self_retrieval.baselines.minilm_embedder", lambda: letters)
    told = json.loads(run("eval", "--data", data[1], "--baselines", "--answers", "--json")[0])
    assert {"EM", "F1", "baselines"} <= set(told)
    names = [
        "names alone",
        "names, judged",
        "BM25",
        "BM25, judged",
        "our embeddings",
        "our embeddings, judged",
        "MiniLM",
        "MiniLM, judged",
    ]
    assert list(told["baselines"]) == names
    assert {"EM", "F1"} <= set(told["baselines"]["BM25"])
    table = run("eval", "--data", data[1], "--baselines")[0].splitlines()
    assert len(table) == 2 + len(names) and "H@1" in table[0] and " ± " in table[1]


def test_a_scoring_in_the_place_of_the_corpus_s_own(
    run: Callable[..., tuple[str, str]], data: tuple[Path, Path]
) -> None:
    hits = {
        kind: json.loads(run("search", "the dog", "-k", 50, "--scoring", kind, "--json")[0])["hits"]
        for kind in ("judged", "paper", "named")
    }
    assert all(hit["rejection"] is not None and hit["title_prob"] is not None for hit in hits["paper"])
    assert [h["score"] for h in hits["paper"]] != [h["score"] for h in hits["judged"]]
    told = json.loads(run("eval", "--data", data[1], "--scoring", "paper", "--json")[0])
    assert told["queries"] == 18


def test_documents_are_the_sum_of_their_passages(
    run: Callable[..., tuple[str, str]], data: tuple[Path, Path]
) -> None:
    hits = json.loads(run("search", "the dog", "-k", 50, "--json")[0])["hits"]
    (told,) = json.loads(run("search", "the dog", "-k", 1, "--documents", "--json")[0])["documents"]
    assert list(told) == ["title", "score", "passages"]
    assert told["passages"] == [hit["id"] for hit in hits if hit["title"] == told["title"]]
    scores = dict.fromkeys((hit["title"] for hit in hits), 0.0)
    for hit in hits:
        scores[hit["title"]] += hit["score"]
    assert told["score"] == pytest.approx(max(scores.values()))
    line = run("search", "the dog", "-k", 1, "--documents")[0]
    assert line == f"{told['score']:.3f}\t{told['title']}\t{' '.join(told['passages'])}\n"
    told = json.loads(run("eval", "--data", data[1], "--documents", "--json")[0])
    assert told["queries"] == 18 and told["H@5"] == 100  # there are three


def test_add_makes_findable_and_lasts(run: Callable[..., tuple[str, str]], tmp_path: Path) -> None:
    (tmp_path / "new.md").write_text("# red boat\n\nA red boat runs on the water of the beach.\n")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xfa")
    out, err = run("add", tmp_path, "--json")
    assert json.loads(out)["added"] == 1 and json.loads(out)["passages"] == 10
    assert "bad.txt" in err
    hits = json.loads(run("search", "boat", "-k", 50, "--json")[0])["hits"]
    assert "new.md#1" in [hit["id"] for hit in hits]
    told = json.loads(run("add", tmp_path, "--json")[0])
    assert list(told) == ["added", "replaced", "unchanged", "removed", "passages", "seconds"]
    assert (told["added"], told["replaced"], told["unchanged"], told["passages"]) == (0, 0, 1, 10)
    (tmp_path / "new.md").write_text("# red boat\n\nThe dog runs.\n")
    assert run("add", tmp_path)[0] == "0 passages added, 1 replaced, 0 unchanged, 0 removed, 10 in all\n"
    assert json.loads(run("remove", "new.md", "--json")[0]) == {"removed": 1, "passages": 9}


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["search", " "], 2, "question is empty"),
        (["eval", "--data", "none.jsonl"], 2, "none.jsonl"),
        (["add", "none.txt"], 2, "none.txt"),
        (["remove", "nothing"], 1, "no passage has the id 'nothing'"),
        (["search"], 2, "TEXT"),
        (["search", "the dog", "--scoring", "best"], 2, "scoring.kind"),
    ],
)
def test_bad_input_is_one_line(
    learned: Path, capfd: pytest.CaptureFixture[str], argv: list[str], code: int, said: str
) -> None:
    assert main(["corpus", *argv, "--model", str(learned)]) == code
    out, err = capfd.readouterr()
    assert out == "" and said in err.splitlines()[-1] and "error" in err


def test_bad_queries_name_the_line(learned: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "q.jsonl").write_text('{"id": "1", "query": "a", "positives": ["nowhere"]}\n')
    assert main(["corpus", "eval", "--data", str(tmp_path / "q.jsonl"), "--model", str(learned)]) == 1
    assert "q.jsonl:1: positives: no passage has the id" in capfd.readouterr().err


def test_a_model_without_a_corpus_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "m", toys.network("llama", "none"), toys.tokenizer(), "")
    assert main(["corpus", "search", "a", "--model", str(tmp_path / "m")]) == 2
    assert "has learned no corpus" in capfd.readouterr().err


def test_a_bad_line_of_the_corpus_stops_training(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.jsonl").write_text(
        '{"id": "1", "title": "t", "text": "a dog"}\n{"id": "2", "title": "t"}\n'
    )
    lm = toys.base_models(tmp_path)[0]
    (tmp_path / "r.toml").write_text(
        f'[self_retrieval]\npassages = "{tmp_path / "c.jsonl"}"\n[init]\nllm = "{lm}"\n'
        "[preprocessing]\nsize = 32\n"
        f'[model]\ndim = 8\nencoder = {{ kind = "none", config = {{ size = 32 }} }}\n'
        f'[train]\nout = "{tmp_path / "out"}"\n'
    )
    assert main(["corpus", "train", str(tmp_path / "r.toml")]) == 1
    assert "c.jsonl:2: text is missing" in capfd.readouterr().err
