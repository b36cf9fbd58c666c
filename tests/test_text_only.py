"""Captions without images: what is read, which are drawn, and what is learned from them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys

from mmgem.data.batches import DrawnTexts
from mmgem.data.text_corpus import read_texts
from mmgem.distributed.world import SINGLE_PROCESS
from mmgem.errors import ConfigError, DataError, UsageError
from mmgem.tasks.image_text.text_only import TextOnlyTerm, TextStep
from mmgem.train.loop import prepare, train_step


def test_texts_of_lines_captions_and_languages(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a  dog\n\na cat\n")
    lines = [
        {"id": "x", "captions": ["a dog", "a horse"], "split": "train"},
        {"text": "held out", "split": "dev"},
        {"en": "a tree", "de": "ein Baum", "ko1": "나무", "score": 3},
    ]
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    found = read_texts([tmp_path / "a.txt", tmp_path / "b.jsonl.gz"], "train")
    assert found == {
        "a dog": True,
        "a cat": True,
        "a horse": True,
        "a tree": True,
        "ein Baum": False,
        "나무": False,
    }
    assert "held out" in read_texts([tmp_path / "b.jsonl.gz"])


def test_bad_texts_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for line, told in (("{", "a.jsonl:1"), ('{"text": 3}', "text must be"), ('{"other": 3}', "no texts")):
        path.write_text(line + "\n")
        with pytest.raises(DataError, match=told):
            read_texts([path])
    with pytest.raises(UsageError, match="No such file"):
        read_texts([tmp_path / "none"])
    (tmp_path / "b.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises((UsageError, DataError), match=r"b\.jsonl\.gz"):
        read_texts([tmp_path / "b.jsonl.gz"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(3)
    texts = folder / "texts.txt"
    texts.write_text("".join(f"{toys.sentence(rng)}\n" for _ in range(10)))
    return {
        "folder": folder,
        "data": toys.photos(folder / "data"),
        "bases": toys.base_models(folder / "bases"),
        "texts": texts,
        "teacher": toys.text_teacher(folder / "teacher"),
    }


def made(world: dict[str, Any], **changes: Any) -> Any:
    options = {
        "data__texts": [str(world["texts"])],
        "data__dev_split": "",
        "image_text__text_only": {"weight": 1.0, "batch_size": 4, "teacher": str(world["teacher"])},
    }
    return toys.recipe(world["folder"], world["data"], *world["bases"], **(options | changes))


def test_every_text_is_drawn_before_any_is_drawn_again(world: dict[str, Any]) -> None:
    run = prepare(made(world))
    (term,) = run.tasks[0].text_terms
    (task,) = run.tasks
    drawn = [task.load_batch(step, torch.device("cpu")).drawn[term.section].texts for step in range(2)]
    said = [tuple(ids.tolist()) for texts in drawn for ids in texts]
    assert len(said) == len(set(said)) == 8
    again = task.load_batch(1, torch.device("cpu")).drawn[term.section]
    assert [ids.tolist() for ids in again.texts] == [ids.tolist() for ids in drawn[1]]
    values = train_step(run, 0)[0]
    assert values["text_loss"] > 0
    assert values["text_caption_loss"] > 0


def test_captions_alone_need_no_teacher(world: dict[str, Any]) -> None:
    run = prepare(made(world, image_text__text_only={"weight": 1.0, "batch_size": 4}))
    values = train_step(run, 0)[0]
    assert values["text_caption_loss"] > 0
    assert "text_loss" not in values


def test_only_what_a_run_draws_is_embedded_by_the_teacher(world: dict[str, Any]) -> None:
    run = prepare(made(world, train__epochs=0.4))
    (term,) = run.tasks[0].text_terms
    assert run.total == 1
    assert len(term.pool.ids) == len(term.pool.rows) == 4


def test_across_the_gap_lies_an_image(world: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A text that has the embedding of the pair's, of whatever length, is captioned from the pair's image."""
    run = prepare(made(world))
    (task,) = run.tasks
    (term,) = task.text_terms
    batch = task.load_batch(0, torch.device("cpu"))
    width = run.network.config.dim
    images, texts = torch.randn(8, width), torch.randn(len(batch.texts), width)
    drawn = batch.drawn[term.section]
    pair = (drawn.of.pairs * len(texts)).long()
    own = 7 * texts[pair]
    term.loss(run.network, images, texts, own, drawn, batch, SINGLE_PROCESS)
    seen: list[torch.Tensor] = []
    project = run.network.project_visual_prefix
    monkeypatch.setattr(
        run.network, "project_visual_prefix", lambda visual: seen.append(visual) or project(visual)
    )
    term.token_loss(run.network, own, drawn)
    torch.testing.assert_close(seen[0][:, 0], images[batch.text_owner[pair]])


def test_similarities_follow_the_teacher(world: dict[str, Any]) -> None:
    """Where the embeddings are the teacher's own at its temperature, the loss is the teacher's entropy."""
    run = prepare(made(world))
    (task,) = run.tasks
    (term,) = task.text_terms
    assert isinstance(term, TextOnlyTerm)
    batch = task.load_batch(0, torch.device("cpu"))
    drawn = batch.drawn[term.section]
    own, texts = drawn.of.teacher, batch.teacher_texts
    term.config.temperature = term.config.teacher_temperature
    images = torch.randn(8, 8)
    least = term.loss(run.network, images, texts, own, drawn, batch, SINGLE_PROCESS)["text_loss"]
    rows = torch.cat([texts, own])
    cosines = (rows @ rows.T / term.config.teacher_temperature).fill_diagonal_(-torch.inf)
    p = cosines.softmax(1)
    entropy = -(p * p.clamp(min=1e-30).log()).sum(1).mean()
    torch.testing.assert_close(least, entropy, atol=1e-4, rtol=1e-4)
    other = term.loss(run.network, images, texts.flip(0), own, drawn, batch, SINGLE_PROCESS)["text_loss"]
    assert other > least


def test_texts_in_another_language_are_not_captioned(world: dict[str, Any]) -> None:
    run = prepare(made(world))
    (term,) = run.tasks[0].text_terms
    (task,) = run.tasks
    drawn = task.load_batch(0, torch.device("cpu")).drawn[term.section]
    of = drawn.of
    none = TextStep(of.teacher, of.pairs, [False] * 4, 1.0)
    assert term.token_loss(run.network, torch.randn(4, 8), DrawnTexts(drawn.texts, none)) == {}


def test_what_it_needs(world: dict[str, Any]) -> None:
    options = {"weight": 1.0, "batch_size": 4, "caption_weight": 0.0}
    with pytest.raises(ConfigError, match=r"text_only\.teacher: needed"):
        prepare(made(world, image_text__text_only=options))
    with pytest.raises(ConfigError, match=r"data\.texts: missing"):
        prepare(made(world, data__texts=[]))
    with pytest.raises(ConfigError, match=r"data\.texts: .*No such file"):
        prepare(made(world, data__texts=[str(world["folder"] / "none.txt")]))
    with pytest.raises(ConfigError, match=r"texts have one teacher"):
        prepare(
            made(
                world,
                image_text__contrastive={"distill_weight": 0.5, "teacher": str(world["folder"] / "other")},
            )
        )
