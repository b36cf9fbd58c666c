"""Readers of region datasets: what becomes of each format, and what is said of odd and of malformed data."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from pathlib import Path

import pytest

from mmgem.data.readers import (
    load_dataset,
    missing_images,
    read_dci,
    read_flickr30k_entities,
    read_refcoco,
    read_visual_genome,
)
from mmgem.data.readers.regions import json_items
from mmgem.data.records import Record, Region, read_jsonl, write_jsonl
from mmgem.errors import DataError, UsageError


def put(path: Path, content: str | dict | list = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def refused(call, *args, **kwargs) -> str:
    with pytest.raises((DataError, UsageError)) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def quiet(call, *args, **kwargs):
    """The result of a call that must not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return call(*args, **kwargs)


def warned(call, *args, **kwargs) -> tuple[list[Record], str]:
    """The result of a call, and the one line it warned of; the line must come from a file of mmgem's."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        records = call(*args, **kwargs)
    assert len(said) == 1 and "mmgem" in Path(said[0].filename).parts
    assert "\n" not in str(said[0].message)
    return records, str(said[0].message)


def survives(records: list[Record], path: Path) -> None:
    write_jsonl(path, records)
    assert read_jsonl(path) == records


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


# Flickr30k Entities --------------------------------------------------------------------------------------


def thing(*names: int | str, box: tuple | None = None, rest: str = "") -> str:
    if box is not None:
        sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
        rest = f"<bndbox>{''.join(f'<{side}>{n}</{side}>' for side, n in sides)}</bndbox>"
    return f"<object>{''.join(f'<name>{name}</name>' for name in names)}{rest}</object>"


def entities(folder: Path, name: str, sentences: str, *things: str) -> None:
    put(folder / "Sentences" / f"{name}.txt", sentences)
    size = "<size><width>100</width><height>50</height><depth>3</depth></size>"
    xml = f"<annotation><filename>{name}.jpg</filename>{size}{''.join(things)}</annotation>"
    put(folder / "Annotations" / f"{name}.xml", xml)


SENTENCES = (
    "[/EN#1/people Two men] wave at [/EN#0/notvisual each other] in [/EN#4/scene the yard] .\r\n"
    "[/EN#1/people The men] wear [/EN#2/clothing/other blue\thats] , in [/EN#5/other fun] .\n\n"
    "[/EN#1/people Two men] .\n"
)
THINGS = (
    thing(1, box=(1, 1, 10, 20)),
    thing(1, 2, box=(31, 5, 40, 60)),
    thing(4, rest="<scene>1</scene><nobndbox>0</nobndbox>"),
    thing(5, rest="<scene>0</scene><nobndbox>1</nobndbox>"),
)


def test_flickr30k_entities(tmp_path):
    folder = tmp_path / "entities"
    entities(folder, "12", SENTENCES, *THINGS)
    entities(folder, "7", "A dog .")
    entities(folder, "8", "A cat .")
    put(folder / "train.txt", "12\n")
    put(folder / "val.txt", "7\n9\n")
    put(tmp_path / "flickr30k-images" / "12.jpg")
    records = quiet(read_flickr30k_entities, folder)
    photos = tmp_path / "flickr30k-images"
    assert records == [
        Record(
            photos / "12.jpg",
            ("Two men wave at each other in the yard .", "The men wear blue hats , in fun .", "Two men ."),
            "train",
            regions=(
                Region((0, 0, 40, 60), ("Two men", "The men"), {"entity": "1"}),
                Region((30, 4, 40, 60), ("blue hats",), {"entity": "2"}),
            ),
        ),
        Record(photos / "7.jpg", ("A dog .",), "dev"),
        Record(photos / "8.jpg", ("A cat .",)),
    ]
    assert [p.name for p in missing_images(records)] == ["7.jpg", "8.jpg"]
    assert records == load_dataset(folder) == load_dataset(folder / "Sentences")
    assert load_dataset(folder, "dev", images=tmp_path / "flickr30k-images") == records[1:2]
    survives(records, tmp_path / "e.jsonl")
    put(folder / "results.token", "1.jpg#0\tA dog\n")
    assert refused(load_dataset, folder).endswith("several datasets, name one: Sentences, results.token")


def test_flickr30k_entities_counts_what_is_odd(tmp_path):
    odd = [
        thing(1, box=(10, 10, 9, 20)),
        thing(1, box=(101, 1, 110, 9)),
        thing(1, box=(5, 5, 5, 5)),
        thing(2, box=(0, 1, 9, 9)),
        thing(3, box=(1, 1, 9, 9)),
        thing(4, box=(1, 1, 9, 9)),
        thing(6, box=(1, 1, 9, 9)),
    ]
    said_of = (
        "[/EN#1/people A man] and [/EN#2/other ] , [/EN#3/other] ; [/EN#2/other a hat] [/EN#8/other an owl]"
    )
    entities(tmp_path, "1", said_of, *odd)
    put(tmp_path / "1.jpg")
    put(tmp_path / "Annotations" / "2.xml")
    put(tmp_path / "Sentences" / "3.txt")
    records, said = warned(load_dataset, tmp_path)
    assert said == (
        f"{tmp_path}: left out 1 box of no area, 1 box outside its image, 2 blank phrases, "
        "2 entities that no sentence names, 2 images without their sentence or annotation file"
    )
    assert [(r.box, r.captions) for r in records[0].regions] == [
        ((4, 4, 5, 5), ("A man",)),
        ((-1, 0, 9, 9), ("a hat",)),
    ]
    assert records[0].captions == ("A man and , ; a hat an owl",)


def test_flickr30k_entities_without_sizes(tmp_path):
    put(tmp_path / "1.jpg")
    for size in ("", "<size><width>0</width><height>0</height></size>"):
        entities(tmp_path, "1", "[/EN#1/people A man]")
        put(
            tmp_path / "Annotations" / "1.xml",
            f"<?xml version='1.0' encoding='latin-1'?><a>{size}{thing(1, box=(900, 1, 910, 9))}</a>",
        )
        assert quiet(load_dataset, tmp_path)[0].regions[0].box == (899, 0, 910, 9)


@pytest.mark.parametrize(
    ("xml", "part"),
    [
        ("<a><object></a>", "not valid XML: mismatched tag: line 1"),
        ("", "not valid XML"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "XML that defines entities is not read"),
        (f"<a>{thing(box=(1, 1, 2, 2))}</a>", "object 0: name must be"),
        (f"<a>{thing(' ', box=(1, 1, 2, 2))}</a>", "object 0: name must be"),
        (f"<a>{thing(1)}</a>", "object 0: must have bndbox, or nobndbox and scene"),
        (f"<a>{thing(1, box=(1, 1, 'two', 2))}</a>", "object 0: xmax must be a number, not 'two'"),
        (f"<a>{thing(1, box=(1, 1, 'nan', 2))}</a>", "object 0: xmax must be a number of pixels"),
        (f"<a>{thing(1, rest='<bndbox/>')}</a>", "object 0: xmin must be a number, not ''"),
        ("<a><size/></a>", "width must be a number, not ''"),
    ],
)
def test_flickr30k_entities_xml_errors(tmp_path, xml, part):
    entities(tmp_path, "1", "[/EN#1/people A man]")
    put(tmp_path / "1.jpg")
    file = put(tmp_path / "Annotations" / "1.xml", xml)
    message = refused(read_flickr30k_entities, tmp_path)
    assert message.startswith(f"{file}: {part}")


def test_flickr30k_entities_text_errors(tmp_path):
    put(tmp_path / "1.jpg")
    for line in ("[/EN#1/people A man", "[/EN#1/people A [/EN#2/other hat] man]"):
        entities(tmp_path, "1", f"A dog .\n{line}\n")
        message = refused(read_flickr30k_entities, tmp_path)
        assert message.startswith(f"{tmp_path / 'Sentences' / '1.txt'}:2: a phrase must be ")
    (tmp_path / "Sentences" / "1.txt").write_bytes(b"caf\xe9")
    assert "1.txt:1: not UTF-8" in refused(read_flickr30k_entities, tmp_path)
    (tmp_path / "Sentences" / "1.txt").unlink()
    assert "no image has both" in refused(read_flickr30k_entities, tmp_path)
    (tmp_path / "Sentences").rmdir()
    assert "Sentences: no such folder" in refused(read_flickr30k_entities, tmp_path)


# DCI -----------------------------------------------------------------------------------------------------


def mask(label: str | None, caption: str | None, *box: float, quality: int = 0) -> dict:
    bounds = {"topLeft": {"x": box[0], "y": box[1]}, "bottomRight": {"x": box[2], "y": box[3]}}
    words = {"label": label, "caption": caption}
    return {"bounds": bounds, "mask_quality": quality, "area": 4, "outer_mask": "iVBO", "idx": 0} | words


def dci(folder: Path, name: str = "5-data.json", place: str = "annotations", **fields) -> Path:
    data = {
        "image": "sa_1.jpg",
        "short_caption": "A water pump.",
        "extra_caption": "It is\nred.",
        "width": 100,
        "height": 50,
        "mask_data": {
            "0": mask("pump", "An old  pump of iron.", 1, 2, 30, 40),
            "3": mask("wall", "", 0, 0, 100, 50, quality=1),
            "4": mask(None, None, 0, 0, 9, 9, quality=2),
        },
        "mask_keys": ["0", "3", "4"],
    }
    return put(folder / place / name, data | fields)


def test_dci(tmp_path):
    file = dci(tmp_path)
    dci(tmp_path, "6-data.json", image="sa_2.jpg", mask_data={}, short_caption="", extra_caption="")
    put(tmp_path / "splits.json", {"train": ["6-data.json", "9-data.json"], "valid": ["5-data.json"]})
    put(tmp_path / "photos" / "sa_1.jpg")
    records = quiet(read_dci, tmp_path)
    assert records == [
        Record(
            tmp_path / "photos" / "sa_1.jpg",
            ("A water pump. It is red.",),
            "valid",
            regions=(
                Region((1, 2, 30, 40), ("pump: An old pump of iron.",), {"mask": "0"}),
                Region((0, 0, 100, 50), ("wall",), {"mask": "3"}),
            ),
        ),
        Record(tmp_path / "photos" / "sa_2.jpg", split="train"),
    ]
    assert missing_images(records) == [tmp_path / "photos" / "sa_2.jpg"]
    assert records == load_dataset(tmp_path) == load_dataset(tmp_path / "annotations")
    assert records[:1] == load_dataset(file) == read_dci(file, tmp_path / "photos")
    assert records[1:] == load_dataset(tmp_path, "train")
    survives(records, tmp_path / "out" / "d.jsonl")
    put(tmp_path / "mine.jsonl", {"image": "1.jpg"})
    assert refused(load_dataset, tmp_path).endswith("several datasets, name one: annotations, mine.jsonl")


def test_dci_summaries_are_meta_and_complete_is_preferred(tmp_path):
    dci(tmp_path)
    summaries = {"base": "A pump.", "m-0-sc": ["An iron pump."]}
    dci(tmp_path, place="complete", summaries=summaries, negatives={"base": {}})
    put(tmp_path / "photos" / "sa_1.jpg")
    records = quiet(load_dataset, tmp_path)
    assert [r.meta for r in records] == [{"summaries": summaries}]
    assert records == load_dataset(tmp_path / "complete") != load_dataset(tmp_path / "annotations")
    survives(records, tmp_path / "d.jsonl")


def test_dci_counts_what_is_odd(tmp_path):
    masks = {
        "0": mask("empty", "", 0, 0, 0, 0),
        "1": mask("outside", "", 100, 0, 110, 9),
        "2": mask(" ", None, 0, 0, 9, 9),
        "3": mask("", "words", -3, 0, 9, 900),
        "4": mask("bad", "bad", 0, 0, 0, 0, quality=2),
    }
    dci(tmp_path, mask_data=masks)
    put(tmp_path / "photos" / "sa_1.jpg")
    records, said = warned(load_dataset, tmp_path)
    assert (
        said
        == f"{tmp_path / 'annotations'}: left out 1 box of no area, 1 box outside its image, 1 blank phrase"
    )
    assert records[0].regions == (Region((-3, 0, 9, 900), ("words",), {"mask": "3"}),)


@pytest.mark.parametrize(
    ("fields", "part"),
    [
        ({"image": None}, "image must be a string, not null"),
        ({"image": ""}, "image is empty"),
        ({"short_caption": None}, "short_caption must be a string, not null"),
        ({"extra_caption": 5}, "extra_caption must be a string, not 5"),
        ({"mask_data": []}, "mask_data must be an object, not []"),
        ({"mask_data": {"7": None}}, "mask_data['7']: must be an object, not null"),
        (
            {"mask_data": {"7": {"bounds": [[0, 0], [5, 9]]}}},
            "mask_data['7']: bounds must be an object, not [[0",
        ),
        (
            {"mask_data": {"7": {"bounds": {"topLeft": {"x": 1}}}}},
            "mask_data['7']: bounds: y must be a number",
        ),
        ({"mask_data": {"7": mask("a", 5, 0, 0, 9, 9)}}, "mask_data['7']: caption must be a string, not 5"),
        ({"summaries": []}, "summaries must be an object, not []"),
        ({"width": "9"}, "width must be a number"),
    ],
)
def test_dci_errors(tmp_path, fields, part):
    file = dci(tmp_path, **fields)
    assert refused(read_dci, tmp_path).startswith(f"{file}: {part}")


def test_dci_file_errors(tmp_path):
    assert "no JSON files in it" in refused(read_dci, tmp_path)
    assert "no such folder" in refused(read_dci, tmp_path / "none")
    file = dci(tmp_path)
    assert "photos" in refused(read_dci, tmp_path)
    put(tmp_path / "photos" / "sa_1.jpg")
    for content in ([], {"train": "5-data.json"}, {"train": [5]}, "{"):
        message = refused(read_dci, tmp_path) if put(tmp_path / "splits.json", content) else ""
        assert message.startswith(str(tmp_path / "splits.json"))
    (tmp_path / "splits.json").unlink()
    assert f"{file}: not valid JSON" in refused(read_dci, put(file, "{"))


def test_jsonl_with_keys_like_dci_stays_jsonl(tmp_path):
    line = {"image": "1.jpg", "mask_data": {}, "captions": ["A dog."]}
    assert load_dataset(put(tmp_path / "d.json", line))[0].captions == ("A dog.",)
