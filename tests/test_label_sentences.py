"""Captions for photos that have a label only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import toys

from mmgem import MMGEM
from mmgem.clean.label_sentences import SaidTexts, label_sentences
from mmgem.cli.main import main
from mmgem.data.labels import read_labels
from mmgem.data.records import Record, read_jsonl

TEXTS = [
    "a red dog runs over the green snow",
    "two dogs sit on a big house",
    "the small cat sleeps near a tree.",
    "a big dog jumps over one small boat .",
    "a dogged man runs over the snow",
    "a big dog sees another, and a big dog runs",
    "a dog",  # says too little
    " ".join(["a dog runs"] * 5),  # says too much
]


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    toys.photos(tmp_path / "my", train=12, dev=0)
    return [tmp_path / "my" / "images" / f"{i}.png" for i in range(12)]


def test_texts_are_found_by_whole_words_in_one_or_more() -> None:
    said = SaidTexts(TEXTS)
    assert len(said.texts) == 6 and all(text.endswith(".") for text in said.texts)
    assert {said.texts[n].split()[1] for n in said.that_say("dog")} == {"red", "dogs", "big"}
    assert [said.texts[n] for n in said.that_say("small cat")] == ["the small cat sleeps near a tree."]
    assert said.that_say("Small-Cat") == said.that_say("small cat")
    assert not said.that_say("cat small") and not said.that_say("zebra") and not said.that_say("!")


def test_a_name_takes_the_place_of_its_kind_where_that_is_said_once() -> None:
    said = SaidTexts(TEXTS)
    found = {said.with_name(n, "big dog", "emu") for n in said.that_say("big dog")}
    assert found == {"an emu jumps over one small boat.", None}


def test_photos_get_the_nearest_texts_that_say_their_label(photos: list[Path], model: MMGEM) -> None:
    rng = np.random.default_rng(0)
    texts = [f"{toys.sentence(rng, 4)} dog {toys.sentence(rng, 3)}" for _ in range(30)]
    records = [Record(photo, label="dog", split="train") for photo in photos]
    found = label_sentences(records, texts, model, per_photo=2)
    assert (found.said, found.by_kind, found.unsaid, found.captioned) == (1, 0, [], 12)
    sentences = SaidTexts(texts).texts
    vectors = model.embed_texts(sentences)
    alone = model.embed_texts(["A close up of a dog."])[0]
    for record, image in zip(found.records, model.embed_images(photos), strict=True):
        order = np.argsort(-(vectors @ image - 0.004 * 8), kind="stable")
        near = [sentences[n] for n in order if vectors[n] @ image > alone @ image - 0.06][:2]
        wanted = [text[0].upper() + text[1:] for text in near]
        assert list(record.captions) == (wanted if len(wanted) == 2 else [*wanted, "A close up of a dog."])
        assert (record.label, record.split) == ("dog", "train")


def test_what_is_not_said_is_named_and_what_has_captions_stays(
    photos: list[Path], model: MMGEM, tmp_path: Path
) -> None:
    photos[3].write_bytes(b"no photo")
    records = [
        Record(photos[0], label="emu"),
        Record(photos[1], ("a house",), label="emu"),
        Record(photos[2]),
        Record(photos[3], label="emu"),
        Record(photos[4], label="cat"),
    ]
    texts = [f"a big dog runs over the {word} snow" for word in toys.WORDS[2:10]]
    found = label_sentences(records, texts, model, read_labels(toys.labels(tmp_path)))
    assert found.records[0].captions == ("A close up of an emu.",)
    assert found.records[1:4] == records[1:4]
    assert len(found.problems) == 1 and "3.png" in found.problems[0]
    assert (found.said, found.by_kind, found.unsaid, found.captioned) == (0, 1, ["emu"], 2)
    *said, last = found.records[4].captions
    assert all(text.startswith("A cat runs over the ") for text in said)
    assert last == "A close up of a cat." or len(said) == 2


def test_the_command_writes_a_data_set(
    photos: list[Path], tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, texts, out = tmp_path / "my" / "labels.jsonl", tmp_path / "texts.txt", tmp_path / "out" / "c.jsonl"
    data.write_text(
        "".join(json.dumps({"image": f"images/{i}.png", "label": "big_dog"}) + "\n" for i in (0, 1))
    )
    texts.write_text("\n".join(TEXTS))
    argv = ["data", "caption-labels", str(data), "--texts", str(texts), "--model", str(tiny_model_folder)]
    assert main([*argv, "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["photos"], said["captioned"], said["names"], said["problems"]) == (2, 2, 1, [])
    for record, photo in zip(read_jsonl(out), photos, strict=False):
        assert record.image.samefile(photo) and record.label == "big_dog" and record.captions
    assert main([*argv, "--out", str(data)]) == 2
    assert "is the data itself" in capsys.readouterr().err
