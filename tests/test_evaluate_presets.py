from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mmgem.errors import DataError, UsageError
from mmgem.evaluate.presets import PRESETS, load_preset, preset_classes, preset_mismatch


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def karpathy(root: Path, name: str, folder: str, filepath: str | None = None) -> None:
    images: list[dict[str, Any]] = []
    for i, split in enumerate(["train", "restval", "val", "test", "test"]):
        entry = {"filename": f"{i}.jpg", "split": split, "imgid": i}
        entry["sentences"] = [{"raw": f"Caption {j} of image {i}."} for j in range(6)]
        if filepath:
            entry["filepath"] = filepath
        images.append(entry)
        touch(root / folder / (filepath or "") / f"{i}.jpg")
    (root / f"dataset_{name}.json").write_text(json.dumps({"images": images, "dataset": name}))


def nocaps(root: Path, domains: list[Any]) -> None:
    root.mkdir(exist_ok=True)
    data = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "domain": d} for i, d in enumerate(domains)],
        "annotations": [
            {"image_id": i, "id": 10 * i + j, "caption": f"{j} dogs"}
            for i in range(len(domains))
            for j in range(10)
        ],
    }
    (root / "nocaps_val_4500_captions.json").write_text(json.dumps(data))
    for i in range(len(domains)):
        touch(root / "validation" / f"{i}.jpg")


def test_long_descriptions(tmp_path: Path) -> None:
    for name, said in (("1", "A pump."), ("2", "")):
        fields = {"image": f"{name}.jpg", "short_caption": said, "extra_caption": said and "It is red."}
        touch(tmp_path / "photos" / f"{name}.jpg")
        touch(file := tmp_path / "annotations" / f"{name}.json")
        file.write_text(json.dumps({**fields, "mask_data": {}}))
    (record,) = load_preset("l-dci", tmp_path)
    assert record.captions == ("A pump. It is red.",)
    assert record.image == tmp_path / "photos" / "1.jpg"


def test_presets_say_what_they_are() -> None:
    for name, preset in PRESETS.items():
        assert preset.name == name
        assert preset.task in ("retrieval", "caption", "classify", "longtext")
        assert preset.source and preset.metric and preset.notes.endswith(".")


def test_the_guide_describes_every_preset() -> None:
    guide = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text("utf-8")
    assert [name for name in PRESETS if f"`{name}`" not in guide] == []


@pytest.mark.parametrize(
    ("name", "folder", "filepath"),
    [
        ("coco", ".", "val2014"),
        ("flickr30k", "flickr30k-images", None),
        ("flickr8k", "Flicker8k_Dataset", None),
    ],
)
def test_karpathy_presets(tmp_path: Path, name: str, folder: str, filepath: str | None) -> None:
    karpathy(tmp_path, name, folder, filepath)
    records = load_preset(f"{name}-retrieval", tmp_path)
    assert [record.image.name for record in records] == ["3.jpg", "4.jpg"]
    assert all(record.image.is_file() for record in records)
    assert [len(record.captions) for record in records] == [5, 5]
    assert records[0].captions[0] == "Caption 0 of image 3."
    assert [len(record.captions) for record in load_preset(f"{name}-caption", tmp_path)] == [6, 6]
    assert "2 images instead of" in str(preset_mismatch(f"{name}-retrieval", records))
    assert preset_mismatch("flickr8k-caption", records * 500) is None


def test_flickr8k_from_its_authors_files(tmp_path: Path) -> None:
    lines = [f"{i}.jpg#{j}\tA dog , number {j} ." for i in range(3) for j in range(5)]
    (tmp_path / "Flickr8k.token.txt").write_text("\n".join(lines))
    (tmp_path / "Flickr8k.lemma.token.txt").write_text("\n".join(lines))
    (tmp_path / "Flickr_8k.testImages.txt").write_text("1.jpg\n")
    (tmp_path / "Flickr_8k.trainImages.txt").write_text("0.jpg\n2.jpg\n")
    touch(tmp_path / "Flicker8k_Dataset" / "1.jpg")
    records = load_preset("flickr8k-retrieval", tmp_path)
    assert [record.image for record in records] == [tmp_path / "Flicker8k_Dataset" / "1.jpg"]


def test_nocaps_keeps_the_domain(tmp_path: Path) -> None:
    nocaps(tmp_path, ["in-domain", "near-domain", "out-domain"])
    records = load_preset("nocaps", tmp_path)
    assert [record.meta["domain"] for record in records] == ["in-domain", "near-domain", "out-domain"]
    assert [len(record.captions) for record in records] == [10, 10, 10]
    assert all(record.image.is_file() for record in records)
    nocaps(tmp_path, ["in-domain", None])
    with pytest.raises(DataError, match=r"images\[1\].domain"):
        load_preset("nocaps", tmp_path)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("classnames.txt", "n02\tgreat white shark\n\nn01\ttench\nn03\tcrane\n"),
        ("LOC_synset_mapping.txt", "n01 tench, Tinca tinca\nn02 great white shark, white shark\nn03 crane\n"),
        (
            "imagenet_class_index.json",
            '{"0": ["n01", "tench"], "1": ["n02", "great_white_shark"], "2": ["n03", "crane"]}',
        ),
    ],
)
def test_imagenet(tmp_path: Path, file: str, text: str) -> None:
    for name in ("n02/a.JPEG", "n01/b.JPEG"):
        touch(tmp_path / "val" / name)
    (tmp_path / file).write_text(text)
    assert [record.label for record in load_preset("imagenet", tmp_path)] == ["n01", "n02"]
    classes = preset_classes("imagenet", tmp_path)
    assert list(classes.items()) == [("n01", "tench"), ("n02", "great white shark"), ("n03", "crane")]


def test_class_folders(tmp_path: Path) -> None:
    for name in ("train/cat/a.png", "test/dog/b.png", "test/cat/c.png"):
        touch(tmp_path / name)
    records = load_preset("class-folders", tmp_path)
    assert [(record.label, record.image.name) for record in records] == [("cat", "c.png"), ("dog", "b.png")]
    assert preset_classes("class-folders", tmp_path) == {"cat": "cat", "dog": "dog"}
    assert [record.label for record in load_preset("class-folders", tmp_path / "test")] == ["cat", "dog"]
    assert preset_mismatch("class-folders", records) is None


def test_training_images_are_not_a_test_set(tmp_path: Path) -> None:
    touch(tmp_path / "train/cat/a.png")
    with pytest.raises(UsageError, match="has train/ but none of test"):
        load_preset("class-folders", tmp_path)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no preset 'coco'; there are coco-retrieval"):
        load_preset("coco", tmp_path)
    with pytest.raises(UsageError, match="no such folder"):
        load_preset("nocaps", tmp_path / "none")
    with pytest.raises(UsageError, match=r"needs its data there: dataset_coco.json or annotations"):
        load_preset("coco-caption", tmp_path)
    with pytest.raises(UsageError, match="no classes"):
        preset_classes("nocaps", tmp_path)
    touch(tmp_path / "val/n01/a.jpg")
    with pytest.raises(UsageError, match=r"needs its class names there: classnames.txt or"):
        load_preset("imagenet", tmp_path)
    for text, message in [
        ("n01\n", "classnames.txt:1: must be a label"),
        ("n01 a\nn01 b\n", "classnames.txt:2: n01 is there twice"),
        ("\n", "no class names"),
        ("n02 shark\n", "a.jpg: its class n01 is not in"),
    ]:
        (tmp_path / "classnames.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            load_preset("imagenet", tmp_path)
    (tmp_path / "classnames.txt").unlink()
    (tmp_path / "imagenet_class_index.json").write_text('["n01"]')
    with pytest.raises(DataError, match=r"imagenet_class_index\.json: must be"):
        load_preset("imagenet", tmp_path)
