"""Learning a corpus: every sentence, query and passage has its turn; a run ends in a folder that searches."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import toys

from mmgem.checkpoints.model_folder import load_model
from mmgem.config import Recipe
from mmgem.errors import ConfigError, DataError
from mmgem.self_retrieval.batches import SelfRetrievalBatch, SelfRetrievalBatches
from mmgem.self_retrieval.config import SelfRetrievalConfig
from mmgem.self_retrieval.losses import reading_losses, retrieval_loss
from mmgem.self_retrieval.model import SelfRetrieval
from mmgem.self_retrieval.passages import Passage, load_corpus, load_queries
from mmgem.self_retrieval.prompts import Prompts
from mmgem.self_retrieval.query_generation import cached_generated_queries
from mmgem.train import loop
from mmgem.train.loop import train

PROMPTS = Prompts(toys.tokenizer())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return toys.corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.base_models(tmp_path_factory.mktemp("bases"))[0]


def batches(data: tuple[Path, Path], **options: Any) -> SelfRetrievalBatches:
    config = SelfRetrievalConfig(**{"batch_size": 8} | options)
    return SelfRetrievalBatches(load_corpus(data[0]), load_queries(data[1]), PROMPTS, config, 0)


def recipe(folder: Path, data: tuple[Path, Path], lm: Path, **changes: Any) -> Recipe:
    made = toys.recipe(folder, folder, lm, folder / "efficientnet", **changes)
    made.data.train, made.model.encoder.kind, made.model.encoder.config = None, "none", {"size": 32}
    made.model.encoder.freeze_until = None
    made.preprocessing.max_text_tokens = 200
    section = SelfRetrievalConfig(data[0], [data[1]], dev=data[1], batch_size=8)
    made.tasks = {"self_retrieval": section}
    return made


def test_an_epoch_shows_everything_once(data: tuple[Path, Path]) -> None:
    made = batches(data)
    names, passages = Counter(), Counter()
    for step in range(made.per_epoch):
        batch = made[step]
        names.update(tuple(ids.tolist()) for ids in batch.names)
        count = int(((batch.parents < 0) & ~batch.embed).sum())
        passages.update(tuple(ids.tolist()) for ids in batch.reads[:count])
    assert sum(names.values()) == len(made.pairs) == 9 * 3 + 18
    assert sorted(passages.values()) == [1] * 9
    again = batches(data)[made.per_epoch + 1]
    for a, b in zip(made[made.per_epoch + 1].names, again.names, strict=True):
        assert torch.equal(a, b)


def test_targets_are_titles_prefixes_questions_and_answers(data: tuple[Path, Path]) -> None:
    passages = {p.id: p for p in load_corpus(data[0])}
    batch = batches(data, prefix_tokens=3)[0]
    targets = torch.cat(batch.names)[batch.named].tolist()
    want = set()
    for p in passages.values():
        title, text = PROMPTS.pieces([p.title, p.text])
        assert len(title) == 2
        want.add((*title, PROMPTS.end, *text[:3]))
    at = 0
    for ids in batch.names:
        length = int(batch.named[at : at + len(ids)].sum())
        assert tuple(ids[batch.named[at : at + len(ids)]].tolist()) in want
        at += len(ids)
        assert length == 2 + 1 + 3
    assert targets
    asked = torch.cat(batch.reads)[batch.asked].tolist()
    questions = [PROMPTS.pieces([q.query])[0] for q in load_queries(data[1])]
    assert len(asked) % 5 == 0 and asked[:5] in questions
    answered = torch.cat(batch.reads)[batch.answered].tolist()
    assert PROMPTS.rejection[0] in answered and PROMPTS.end in answered


def test_without_titles_or_memorising(data: tuple[Path, Path]) -> None:
    made = batches(data, memorise=False, titles=False)
    assert len(made.pairs) == 18
    batch = made[0]
    assert all(PROMPTS.end not in ids[:-1].tolist() for ids in batch.names)


def split(batch: SelfRetrievalBatch) -> list[SelfRetrievalBatch]:
    """The same naming, one at a time."""
    nothing = torch.zeros(0, dtype=torch.long)
    parts, at = [], 0
    for ids in batch.names:
        mask = batch.named[at : at + len(ids)]
        at += len(ids)
        parts.append(
            SelfRetrievalBatch(
                [ids], mask, [], nothing, nothing.bool(), nothing.bool(), nothing.bool(), nothing
            )
        )
    return parts


def test_the_loss_is_the_token_mean_of_single_sequences(data: tuple[Path, Path]) -> None:
    network, config = toys.network("llama", "none"), SelfRetrievalConfig()
    batch = batches(data)[1]
    whole = retrieval_loss(network, batch, config)["retrieve_loss"]
    parts = split(batch)
    counts = torch.tensor([float(p.named.sum()) for p in parts])
    single = torch.stack([retrieval_loss(network, p, config)["retrieve_loss"] for p in parts])
    torch.testing.assert_close(whole, (single * counts).sum() / counts.sum(), atol=1e-5, rtol=1e-5)


def test_losses_of_weight_zero_are_left_out(data: tuple[Path, Path]) -> None:
    network, batch = toys.network("llama", "none"), batches(data)[0]
    found = reading_losses(network, batch, SelfRetrievalConfig(assess_weight=0, embed_weight=0, ask_weight=2))
    assert set(found) == {"ask_loss"}
    one = reading_losses(network, batch, SelfRetrievalConfig())
    torch.testing.assert_close(found["ask_loss"], 2 * one["ask_loss"])
    assert set(one) == {"ask_loss", "assess_loss", "embed_loss"}
    assert (
        reading_losses(network, batch, SelfRetrievalConfig(assess_weight=0, embed_weight=0, ask_weight=0))
        == {}
    )


def test_a_run_ends_in_a_model_that_searches(tmp_path: Path, data: tuple[Path, Path], lm: Path) -> None:
    rates = {"optim__lr_llm": 1e-2, "optim__lr_embeddings": 1e-2, "train__epochs": 40}
    made = recipe(tmp_path, data, lm, **rates)
    folder = train(made)
    log = [json.loads(line) for line in (made.train.out / "log.jsonl").read_text().splitlines()]
    losses = [row["retrieve_loss"] for row in log if "retrieve_loss" in row]
    assert losses[-1] < 0.75 * losses[0]
    scores = next(row for row in log if "H@1" in row)
    assert scores["score"] == scores["H@1"]
    engine = SelfRetrieval.from_pretrained(folder)
    assert engine.corpus.vectors is not None and engine.corpus.vectors.shape == (9, 8)
    queries = load_queries(data[1])
    measured = engine.measure(queries, answers=True)
    assert measured["H@1"] == pytest.approx(scores["H@1"], abs=0.01)
    assert {"H@5", "MRR@5", "queries", "seconds_per_query", "EM", "F1"} <= set(measured)
    assert set(scores) >= {"H@5", "MRR@5", "named H@1", "named H@5"}


def test_resumed_equals_uninterrupted(
    tmp_path: Path, data: tuple[Path, Path], lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(recipe(tmp_path / "a", data, lm, train__epochs=2, optim__ema_decay=0.9))
    real = loop.train_step

    def dying(run: Any, step: int, *more: Any) -> Any:
        if step == 5:
            raise KeyboardInterrupt
        return real(run, step)

    cut = recipe(tmp_path / "b", data, lm, train__epochs=2, optim__ema_decay=0.9)
    monkeypatch.setattr(loop, "train_step", dying)
    with pytest.raises(KeyboardInterrupt):
        train(cut)
    monkeypatch.undo()
    again = train(cut)
    a, b = load_model(whole)[0].state_dict(), load_model(again)[0].state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_images_and_a_corpus_in_one_run(tmp_path: Path, data: tuple[Path, Path]) -> None:
    bases = toys.base_models(tmp_path / "bases")
    made = toys.recipe(tmp_path, toys.photos(tmp_path / "photos"), *bases, train__epochs=1)
    made.tasks |= {"self_retrieval": SelfRetrievalConfig(data[0], [data[1]], batch_size=8)}
    folder = train(made)
    log = [json.loads(line) for line in (made.train.out / "log.jsonl").read_text().splitlines()]
    assert {"contrastive_loss", "caption_loss", "retrieve_loss", "assess_loss"} <= set(log[0])
    from mmgem.api import MMGEM

    photo = next((tmp_path / "photos" / "images").iterdir())
    assert MMGEM.from_pretrained(folder).embed_images([photo]).shape == (1, 8)
    assert len(SelfRetrieval.from_pretrained(folder).search(["the dog"])[0]) == 5


def test_a_model_of_texts_sees_nothing(tmp_path: Path, data: tuple[Path, Path], lm: Path) -> None:
    from mmgem.api import MMGEM
    from mmgem.errors import UsageError

    model = MMGEM.from_pretrained(train(recipe(tmp_path, data, lm, train__epochs=1)))
    assert model.embed_texts(["the dog"]).shape == (1, 8)
    photo = toys.photos(tmp_path / "photos", 1, 1).parent / "images" / "0.png"
    with pytest.raises(UsageError, match="reads texts only"):
        model.embed_images([photo])


def test_no_dev_queries_and_no_queries_but_its_own(
    tmp_path: Path, data: tuple[Path, Path], lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMGEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Prompts, "text", lambda self, ids: "".join(f" {toys.WORDS[i]}?" for i in ids))
    made = recipe(tmp_path, data, lm, train__epochs=1)
    section = made.tasks["self_retrieval"]
    section.queries, section.dev, section.generated_queries = [], Path(), 2
    run = loop.prepare(made)
    assert not run.evaluates
    assert 9 <= sum(map(len, run.tasks[0].batches.questions_by_passage)) <= 18
    again = loop.prepare(made)
    assert again.tasks[0].batches.questions_by_passage == run.tasks[0].batches.questions_by_passage
    assert len(list((tmp_path / "cache" / "questions").iterdir())) == 1


def test_another_model_of_the_same_name_writes_its_own_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMGEM_CACHE", str(tmp_path / "cache"))
    for seed in (0, 1, 1):
        llm = toys.network("tied llama", "none", seed).llm
        cached_generated_queries(llm, PROMPTS, toys.passages(2), 1, 0, "a/model")
    assert len(list((tmp_path / "cache" / "questions").iterdir())) == 2


def test_a_finished_run_leaves_what_was_added(tmp_path: Path, data: tuple[Path, Path], lm: Path) -> None:
    passages = Path(shutil.copy(data[0], tmp_path / "passages.jsonl"))
    made = recipe(tmp_path, (passages, data[1]), lm, train__epochs=1)
    made.tasks["self_retrieval"].dev = Path()
    folder = train(made)
    SelfRetrieval.from_pretrained(folder).add([Passage("new", "red boat", "a red boat on the sea")])
    assert train(made) == folder
    assert SelfRetrieval.from_pretrained(folder).corpus.passages[-1].id == "new"
    first, *others = passages.read_text().splitlines(keepends=True)
    changed = json.loads(first) | {"text": "A red boat. The dog runs on the sea."}
    passages.write_text("".join([json.dumps(changed) + "\n", *others]))
    with pytest.raises(ConfigError, match="self_retrieval: this is not the data the run began with"):
        train(made)


def test_what_cannot_be_learned_is_said_before_the_first_step(
    tmp_path: Path, data: tuple[Path, Path], lm: Path
) -> None:
    made = recipe(tmp_path, data, lm)
    made.tasks["self_retrieval"].queries = [tmp_path / "none.jsonl"]
    with pytest.raises(ConfigError, match=r"self_retrieval.queries: .*none.jsonl: No such file"):
        train(made)
    made = recipe(tmp_path, data, lm)
    made.tasks["self_retrieval"].max_passage_tokens = 10
    with pytest.raises(DataError, match=r"'p0' has .* over self_retrieval.max_passage_tokens = 10"):
        train(made)
    made = recipe(tmp_path, data, lm)
    made.model.attention = "bidirectional"
    with pytest.raises(ConfigError, match="attention"):
        train(made)
    made = recipe(tmp_path, data, lm)
    made.tasks["self_retrieval"].queries, made.tasks["self_retrieval"].memorise = [], False
    with pytest.raises(DataError, match="nothing to learn"):
        train(made)
