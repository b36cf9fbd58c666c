"""Readers of Visual Genome and RefCOCO: what becomes of each, and what is said of odd and malformed data."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
from reading import put, quiet, refused, survives, warned

from mmgem.data.readers import (
    load_dataset,
    missing_images,
    read_refcoco,
    read_visual_genome,
)
from mmgem.data.readers.regions import json_items
from mmgem.data.records import Record, Region

# Visual Genome -------------------------------------------------------------------------------------------


def vg(phrase: str, *box: float) -> dict:
    return {"region_id": 1, "image_id": 1, "phrase": phrase} | dict(
        zip(("x", "y", "width", "height"), box, strict=True)
    )


def visual_genome(folder: Path, *regions: dict, sizes: bool = True) -> Path:
    put(folder / "VG_100K_2" / "1.jpg")
    put(folder / "VG_100K" / "2.jpg")
    if sizes:
        listed = [{"image_id": i, "width": 100, "height": 50, "url": "u"} for i in (1, 2, 3)]
        put(folder / "image_data.json", listed)
    images = [
        {"id": 1, "regions": list(regions)},
        {"image_id": 2, "regions": [vg("a clock", 0, 0, 10, 10)]},
        {"id": 3, "regions": []},
    ]
    return put(folder / "region_descriptions.json", images)


def test_visual_genome(tmp_path):
    regions = [
        vg("the clock", 1, 2, 30, 40),
        vg(" is\ngreen ", 1, 2, 30, 40),
        vg("a wall", -5, 2.5, 300, 40),
        vg("the clock", 1, 2, 30, 40),
    ]
    file = visual_genome(tmp_path, *regions)
    records = quiet(read_visual_genome, file)
    assert records == [
        Record(
            tmp_path / "VG_100K_2" / "1.jpg",
            regions=(
                Region((1, 2, 31, 42), ("the clock", "is green")),
                Region((-5, 2.5, 295, 42.5), ("a wall",)),
            ),
            meta={"image_id": 1},
        ),
        Record(
            tmp_path / "VG_100K" / "2.jpg",
            regions=(Region((0, 0, 10, 10), ("a clock",)),),
            meta={"image_id": 2},
        ),
        Record(tmp_path / "VG_100K" / "3.jpg", meta={"image_id": 3}),
    ]
    assert [p.name for p in missing_images(records)] == ["3.jpg"]
    assert records == read_visual_genome(tmp_path) == load_dataset(tmp_path) == load_dataset(file)
    survives(records, tmp_path / "out" / "vg.jsonl")


def test_visual_genome_counts_what_is_odd(tmp_path):
    odd = [
        vg("no width", 1, 1, 0, 5),
        vg("no height", 1, 1, 5, -3),
        vg("left of it", -9, 1, 9, 5),
        vg("right of it", 100, 1, 9, 5),
        vg(" \n", 1, 1, 5, 5),
        vg("kept", 99, 49, 9, 5),
    ]
    file = visual_genome(tmp_path, *odd)
    records, said = warned(load_dataset, file)
    assert said == f"{file}: left out 2 boxes of no area, 2 boxes outside their images, 1 blank phrase"
    assert records[0].regions == (Region((99, 49, 108, 54), ("kept",)),)
    (tmp_path / "image_data.json").unlink()
    records, said = warned(read_visual_genome, file)
    assert said == f"{file}: left out 2 boxes of no area, 1 box outside its image, 1 blank phrase"
    assert [r.captions for r in records[0].regions] == [("right of it",), ("kept",)]


def test_visual_genome_images_in_one_folder(tmp_path):
    file = visual_genome(tmp_path / "json", sizes=False)
    put(tmp_path / "flat" / "3.jpg")
    records = load_dataset(file, images=tmp_path / "flat")
    assert missing_images(records) == [tmp_path / "flat" / "VG_100K" / f"{i}.jpg" for i in (1, 2)]
    assert records[2].image == tmp_path / "flat" / "3.jpg"
    alone = put(tmp_path / "alone" / "a" / file.name, file.read_text())
    assert "VG_100K/1.jpg" in refused(read_visual_genome, alone)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ([], "no images in the file"),
        ({"id": 1}, "must be a JSON list"),
        ([1], "image 0 of the list: must be an object, not 1"),
        ([{"regions": []}], "image 0 of the list: image_id must be a number or a string, not null"),
        ([{"id": 1}], "image 0 of the list: regions must be a list, not null"),
        ([{"id": 1, "regions": [5]}], "image 0 of the list: regions[0]: must be an object, not 5"),
        ([{"id": 1, "regions": [vg("a", 1, 1, 2, 2), {}]}], "regions[1]: x must be a number, not null"),
        ([{"id": 1, "regions": [vg("a", "1", 1, 2, 2)]}], 'x must be a number, not "1"'),
        ([{"id": 1, "regions": [vg("a", 1, True, 2, 2)]}], "y must be a number, not true"),
        (
            [{"id": 1, "regions": [vg("a", 1, 1, float("nan"), 2)]}],
            "width must be a number of pixels, not 'n",
        ),
        ([{"id": 1, "regions": [vg("a", 1, 1, 2, 10**400)]}], "height must be a number of pixels"),
        (
            [{"id": 1, "regions": [vg("a", 1, 1, 2, 2) | {"phrase": None}]}],
            "phrase must be a string, not null",
        ),
        ('[{"id": 1, "regions": []}', "not valid JSON"),
        ('[{"id": 1, "regions": []}, ]', "not valid JSON"),
        ('[{"id": 1, "regions": []}] x', "not valid JSON"),
        ("[{'id': 1}]", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_visual_genome_errors(tmp_path, content, part):
    file = put(tmp_path / "region_descriptions.json", content)
    message = refused(read_visual_genome, file)
    assert message.startswith(f"{file}: ") and part in message


def test_visual_genome_image_data_errors(tmp_path):
    file = visual_genome(tmp_path, vg("a", 200, 1, 2, 2))
    data = tmp_path / "image_data.json"
    for content, part in [
        ({}, "must be a JSON list"),
        ([{"width": 1}], "image 0 of the list: image_id"),
        ([{"id": 1, "width": "a", "height": 1}], "image 0 of the list: width must be a number"),
        ("[", "not valid JSON"),
    ]:
        message = refused(read_visual_genome, file) if put(data, content) else ""
        assert message.startswith(f"{data}: ") and part in message
    put(data, [{"id": 1, "width": 0, "height": 0}])
    assert len(quiet(read_visual_genome, file)[0].regions) == 1


def test_several_region_files(tmp_path):
    file = visual_genome(tmp_path)
    put(tmp_path / "region_descriptions_v1.json", file.read_text())
    for reader in (read_visual_genome, load_dataset):
        message = refused(reader, tmp_path)
        assert message.endswith("name one: region_descriptions.json, region_descriptions_v1.json")


def test_other_json_lists_are_not_regions(tmp_path):
    for content in (
        [{"image_id": 1, "regions": [{"objects": []}]}],
        [{"image_id": 1, "objects": []}],
        [],
        [5],
    ):
        assert "JSON list" in refused(load_dataset, put(tmp_path / "objects.json", content))
    file = visual_genome(tmp_path)
    assert load_dataset(tmp_path) == load_dataset(file)


@pytest.mark.parametrize("text", ["[]", " [ ] ", "[1]", '[1,\n{"a": [2]} , "]"]\n'])
def test_json_items_are_those_of_the_whole(text):
    assert list(json_items(text)) == json.loads(text)


# RefCOCO -------------------------------------------------------------------------------------------------


def ref(ref_id: int, ann_id: int, split: str, *sents: str, image_id: int = 1) -> dict:
    return {
        "ref_id": ref_id,
        "ann_id": ann_id,
        "image_id": image_id,
        "category_id": 1,
        "file_name": "COCO_train2014_000000000001_7.jpg",
        "split": split,
        "sentences": [{"sent": s, "raw": s.upper(), "tokens": s.split(), "sent_id": 1} for s in sents],
    }


INSTANCES = {
    "images": [
        {"id": 1, "file_name": "COCO_train2014_000000000001.jpg", "width": 100, "height": 50},
        {"id": 2, "file_name": "COCO_train2014_000000000002.jpg"},
    ],
    "annotations": [
        {"id": 10, "image_id": 1, "bbox": [1.5, 2, 10, 20], "iscrowd": 0},
        {"id": 11, "image_id": 1, "bbox": [0, 0, 60, 60], "iscrowd": 1},
        {"id": 12, "image_id": 1, "bbox": [5, 5, 0, 9]},
        {"id": 13, "image_id": 1, "bbox": [5, 50, 9, 9]},
        {"id": 20, "image_id": 2, "bbox": [90, 90, 20, 20]},
    ],
    "categories": [{"id": 1, "name": "person"}],
}
REFS = [
    ref(1, 10, "train", "the left man", "man  in red"),
    ref(2, 20, "testA", "a dog", image_id=2),
    ref(3, 10, "val", "man by the wall"),
    ref(4, 10, "train", "tall one"),
]


def refcoco(folder: Path, refs: list = REFS, instances: dict = INSTANCES) -> Path:
    put(folder / "instances.json", instances)
    return put(folder / "refs(unc).json", refs)


def test_refcoco(tmp_path):
    file = refcoco(tmp_path / "refcoco")
    (tmp_path / "refcoco" / "refs(google).p").write_bytes(pickle.dumps(REFS))
    photos = tmp_path / "images" / "mscoco" / "images" / "train2014"
    put(photos / "COCO_train2014_000000000001.jpg")
    records = quiet(read_refcoco, file)
    one, two = photos / "COCO_train2014_000000000001.jpg", photos / "COCO_train2014_000000000002.jpg"
    assert records == [
        Record(
            one,
            split="train",
            regions=(
                Region((1.5, 2, 11.5, 22), ("the left man", "man in red"), {"ref_id": 1, "ann_id": 10}),
                Region((1.5, 2, 11.5, 22), ("tall one",), {"ref_id": 4, "ann_id": 10}),
            ),
            meta={"image_id": 1},
        ),
        Record(
            two,
            split="testA",
            regions=(Region((90, 90, 110, 110), ("a dog",), {"ref_id": 2, "ann_id": 20}),),
            meta={"image_id": 2},
        ),
        Record(
            one,
            split="val",
            regions=(Region((1.5, 2, 11.5, 22), ("man by the wall",), {"ref_id": 3, "ann_id": 10}),),
            meta={"image_id": 1},
        ),
    ]
    assert missing_images(records) == [two]
    assert records == read_refcoco(tmp_path / "refcoco") == load_dataset(tmp_path / "refcoco")
    assert load_dataset(file, "val") == records[2:]
    assert "its splits are testA, train, val" in refused(load_dataset, file, "dev")
    survives(records, tmp_path / "r.jsonl")


def test_refcoco_with_the_images_of_2017(tmp_path):
    put(tmp_path / "train2017" / "000000000001.jpg")
    records = load_dataset(refcoco(tmp_path), images=tmp_path / "train2017")
    assert [r.image.name for r in records] == [f"00000000000{i}.jpg" for i in (1, 2, 1)]
    assert records == read_refcoco(tmp_path)


def test_refcoco_counts_what_is_odd(tmp_path):
    put(tmp_path / "train2014" / "COCO_train2014_000000000001.jpg")
    odd = [
        ref(1, 11, "train", "the crowd"),
        ref(2, 11, "train", "all of them"),
        ref(3, 12, "train", "nothing"),
        ref(4, 13, "train", "below"),
        ref(5, 10, "train", " ", "a man", ""),
        ref(6, 10, "val", ""),
        ref(7, 10, "test"),
    ]
    records, said = warned(read_refcoco, refcoco(tmp_path, odd))
    assert said == (
        f"{tmp_path / 'refs(unc).json'}: left out 1 box of no area, 1 box outside its image, 2 crowd boxes, "
        "3 blank phrases"
    )
    assert [[g.captions for g in r.regions] for r in records] == [[("a man",)], [], []]


class Bomb:
    """Leaves a file behind if it is ever unpickled."""

    def __reduce__(self):
        return open, ("exploded", "w")


@pytest.mark.parametrize("file_name", ["refs(unc).p", "refs(umd).pkl"])
def test_refcoco_pickles_are_never_read(tmp_path, monkeypatch, file_name):
    monkeypatch.chdir(tmp_path)
    refcoco(tmp_path).unlink()
    file = tmp_path / file_name
    file.write_bytes(pickle.dumps(Bomb()))
    stem = file_name.partition(".")[0]
    for path in (file, tmp_path):
        for reader in (read_refcoco, load_dataset):
            message = refused(reader, path)
            assert message.startswith(f"{file}: a pickle can run any program, so it is never read")
            assert f"make {stem}.json of it" in message
    assert not (tmp_path / "exploded").exists()

    file.write_bytes(pickle.dumps(REFS))
    put(tmp_path / "train2014" / "COCO_train2014_000000000001.jpg")
    exec(message.partition('python -c "')[2].removesuffix('"'))
    assert len(load_dataset(tmp_path)) == 3


def test_refcoco_folders(tmp_path):
    assert "no refs*.json in it" in refused(read_refcoco, tmp_path)
    assert "No such file" in refused(read_refcoco, tmp_path / "refs(unc).json")
    file = refcoco(tmp_path)
    put(tmp_path / "refs(google).json", REFS)
    for reader in (read_refcoco, load_dataset):
        assert refused(reader, tmp_path).endswith("name one: refs(google).json, refs(unc).json")
    (tmp_path / "instances.json").unlink()
    assert "instances.json: No such file" in refused(read_refcoco, file)


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("image_id", None, "image_id must be a number, not null"),
        ("ann_id", [10], "ann_id must be a number, not [10]"),
        ("ann_id", 20, "no image 1 with an annotation 20 in instances.json"),
        ("image_id", 9, "no image 9 with an annotation 10 in instances.json"),
        ("split", None, "split must be a string, not null"),
        ("split", " ", "split is empty"),
        ("sentences", "a man", 'sentences must be a list, not "a man"'),
        ("sentences", [{"raw": "a man"}], "sentences[0]: sent must be a string, not null"),
        ("ref_id", "1", 'ref_id must be a number, not "1"'),
    ],
)
def test_refcoco_ref_errors(tmp_path, key, value, part):
    refs = copy.deepcopy(REFS)
    refs[0][key] = value
    file = refcoco(tmp_path, refs)
    assert refused(read_refcoco, file) == f"{file}: ref 0 of the list: {part}"


@pytest.mark.parametrize(
    ("key", "entry", "part"),
    [
        ("images", {"id": 1, "file_name": None}, "images[0]: file_name must be a string, not null"),
        ("images", {"id": 1, "file_name": ""}, "images[0]: file_name is empty"),
        ("images", {"file_name": "1.jpg"}, "images[0]: id must be a number, not null"),
        (
            "images",
            {"id": 1, "file_name": "1", "width": "9", "height": 9},
            "images[0]: width must be a number",
        ),
        ("annotations", {"image_id": 1}, "annotations[0]: id must be a number, not null"),
        ("annotations", {"id": 10, "image_id": 1}, "annotation 10: bbox must be a list, not null"),
        ("annotations", {"id": 10, "image_id": 1, "bbox": [1, 2, 3]}, "not a list of 3"),
        ("annotations", {"id": 10, "image_id": 1, "bbox": [1, 2, 3, "4"]}, "bbox[3] must be a number"),
        ("annotations", {"id": 10, "image_id": 1, "iscrowd": "0"}, "annotation 10: iscrowd must be a number"),
    ],
)
def test_refcoco_instances_errors(tmp_path, key, entry, part):
    instances = copy.deepcopy(INSTANCES)
    instances[key][0] = entry
    message = refused(read_refcoco, refcoco(tmp_path, instances=instances))
    assert message.startswith(f"{tmp_path / 'instances.json'}: ") and part in message


def test_refcoco_json_errors(tmp_path):
    file = refcoco(tmp_path)
    for content in ("[", [], {"refs": []}):
        assert str(file) in refused(read_refcoco, put(file, content))
    refcoco(tmp_path, instances=[])
    assert "instances.json: must be an object" in refused(read_refcoco, file)
