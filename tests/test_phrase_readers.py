"""Readers of Flickr30k Entities and DCI: what becomes of each, and what is said of odd and malformed data."""

from __future__ import annotations

from pathlib import Path

import pytest
from reading import put, quiet, refused, survives, warned

from mmgem.data.readers import (
    load_dataset,
    missing_images,
    read_dci,
    read_flickr30k_entities,
)
from mmgem.data.records import Record, Region

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
