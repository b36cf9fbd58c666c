"""Readers of other people's dataset formats, and load_dataset finding the right one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from mmgem.data.readers import (
    load_dataset,
    missing_images,
    read_caption_csv,
    read_caption_folder,
    read_class_folders,
    read_coco_captions,
    read_flickr_tokens,
    read_karpathy,
)
from mmgem.data.records import Record, read_jsonl, write_jsonl
from mmgem.errors import DataError, UsageError


def put(path: Path, content: str | dict | list = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def photos(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)


def refused(call, *args, **kwargs) -> str:
    with pytest.raises((DataError, UsageError)) as error:
        call(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


# COCO ------------------------------------------------------------------------------------------------

COCO = {
    "info": {"year": 2017},
    "images": [{"id": 42, "file_name": "0042.jpg", "width": 9}, {"id": 7, "file_name": "0007.jpg"}],
    "annotations": [
        {"image_id": 7, "id": 1, "caption": "A man\nwith a  red helmet. "},
        {"image_id": 42, "id": 2, "caption": "A cat."},
        {"image_id": 7, "id": 3, "caption": "A woman."},
        {"image_id": 7, "id": 4, "caption": " \n"},
    ],
}


def test_coco(tmp_path):
    file = put(tmp_path / "annotations" / "captions_val2017.json", COCO)
    photos(tmp_path / "val2017", "0007.jpg")
    expected = [
        Record(tmp_path / "val2017" / "0042.jpg", ("A cat.",), "val", meta={"image_id": 42}),
        Record(
            tmp_path / "val2017" / "0007.jpg",
            ("A man with a red helmet.", "A woman."),
            "val",
            meta={"image_id": 7},
        ),
    ]
    assert read_coco_captions(file) == load_dataset(file) == load_dataset(file, "val") == expected
    assert missing_images(expected * 2) == [tmp_path / "val2017" / "0042.jpg"]


@pytest.mark.parametrize("place", [".", "images", "val2017", "images/val2017", "../images", "../val2017"])
def test_coco_images_are_found(tmp_path, place):
    file = put(tmp_path / "a" / "captions_val2017.json", COCO)
    folder = (tmp_path / "a" / place).resolve()
    photos(folder, "0042.jpg")
    assert read_coco_captions(file)[0].image == folder / "0042.jpg"


def test_coco_given_images_folder(tmp_path):
    file = put(tmp_path / "mine.json", COCO)
    photos(tmp_path, "0042.jpg")
    (tmp_path / "empty").mkdir()
    records = load_dataset(file, images=tmp_path / "empty")
    assert missing_images(records) == [tmp_path / "empty" / "0042.jpg", tmp_path / "empty" / "0007.jpg"]
    assert records[0].split is None
    assert "no such folder" in refused(load_dataset, file, images=tmp_path / "none")
    assert "not a folder" in refused(load_dataset, file, images=file)


def test_coco_images_nowhere(tmp_path):
    message = refused(read_coco_captions, put(tmp_path / "captions_val2017.json", COCO))
    assert "0042.jpg" in message and "val2017" in message and "give the images folder" in message


@pytest.mark.parametrize(
    ("file_name", "split"),
    [
        ("captions_train2014.json", "train"),
        ("test.json", "test"),
        ("constraints.json", None),
        ("retrain.json", None),
    ],
)
def test_coco_split_is_in_the_name(tmp_path, file_name, split):
    photos(tmp_path, "0042.jpg")
    assert {r.split for r in read_coco_captions(put(tmp_path / file_name, COCO))} == {split}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"images": []}, ["images is empty"]),
        ({"images": {}}, ["images must be a list"]),
        ({"images": ["0042.jpg"]}, ["images must be a list of objects"]),
        ({"images": [{"id": 1}]}, ["images[0].file_name", "null"]),
        ({"images": [{"file_name": "1.jpg"}]}, ["images[0].id"]),
        ({"annotations": None}, ["annotations must be a list"]),
        ({"annotations": [{"image_id": 42, "caption": "x"}, {"image_id": 42}]}, ["annotations[1].caption"]),
        ({"annotations": [{"image_id": 5, "caption": "x"}]}, ["annotations[0]", "no image has the id 5"]),
        ({"annotations": [{"caption": "x"}]}, ["annotations[0].image_id"]),
    ],
)
def test_coco_errors(tmp_path, change, parts):
    photos(tmp_path, "0042.jpg")
    message = refused(read_coco_captions, put(tmp_path / "c.json", COCO | change))
    assert message.startswith(str(tmp_path / "c.json"))
    for part in parts:
        assert part in message


# Karpathy --------------------------------------------------------------------------------------------


def karpathy(filepath: bool) -> dict:
    images = [
        {
            "filename": f"{i}.jpg",
            "imgid": i,
            "split": split,
            "sentids": [i],
            "sentences": [{"raw": f" Photo {i}.", "tokens": ["photo"], "imgid": i}, {"raw": ""}],
        }
        for i, split in enumerate(["train", "restval", "val", "test"])
    ]
    if filepath:
        for i, image in enumerate(images):
            image["filepath"] = "train2014" if i == 0 else "val2014"
            image["cocoid"] = 100 + i
    return {"images": images, "dataset": "coco" if filepath else "flickr30k"}


def test_karpathy_coco(tmp_path):
    file = put(tmp_path / "dataset_coco.json", karpathy(filepath=True))
    photos(tmp_path / "images", "val2014/1.jpg")
    records = read_karpathy(file)
    assert records == load_dataset(file)
    assert [r.split for r in records] == ["train", "train", "val", "test"]
    assert records[1] == Record(
        tmp_path / "images" / "val2014" / "1.jpg", ("Photo 1.",), "train", meta={"cocoid": 101, "imgid": 1}
    )
    assert [r.split for r in read_karpathy(file, restval_as_train=False)][1] == "restval"
    assert len(load_dataset(file, "train")) == 2
    assert "its splits are test, train, val" in refused(load_dataset, file, "restval")


def test_karpathy_images_without_subfolders(tmp_path):
    file = put(tmp_path / "dataset_coco.json", karpathy(filepath=True))
    photos(tmp_path / "flat", "2.jpg")
    assert read_karpathy(file, tmp_path / "flat")[3].image == tmp_path / "flat" / "3.jpg"


def test_karpathy_flickr(tmp_path):
    file = put(tmp_path / "dataset_flickr30k.json", karpathy(filepath=False))
    photos(tmp_path / "flickr30k-images", "0.jpg")
    record = load_dataset(file, "test")[0]
    assert record.image == tmp_path / "flickr30k-images" / "3.jpg" and record.meta == {"imgid": 3}


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("filename", None, "images[1].filename"),
        ("split", None, "images[1].split"),
        ("sentences", "a dog", "images[1].sentences must be a list"),
        ("sentences", [{"tokens": []}], "images[1].sentences[0].raw"),
    ],
)
def test_karpathy_errors(tmp_path, key, value, part):
    data = karpathy(filepath=False)
    data["images"][1][key] = value
    photos(tmp_path, "0.jpg")
    assert part in refused(read_karpathy, put(tmp_path / "d.json", data))


def test_json_that_is_broken(tmp_path):
    for content in ("{", "", "[" * 100_000):
        file = put(tmp_path / "broken.json", content)
        for reader in (read_karpathy, read_coco_captions, load_dataset):
            assert str(file) in refused(reader, file)


# Flickr ----------------------------------------------------------------------------------------------


def test_flickr_tokens(tmp_path):
    text = "1.jpg#0\tA child , in pink .\r\n1.jpg#1\t A  girl .\r\n\r\n2.jpg#0\t\r\n3.jpg.1#4\ta#1\tb\r\n"
    file = tmp_path / "Flickr8k_text" / "Flickr8k.token.txt"
    put(file).write_bytes(text.encode())
    photos(tmp_path / "Flicker8k_Dataset", "1.jpg")
    put(tmp_path / "Flickr8k_text" / "Flickr_8k.trainImages.txt", "1.jpg\n")
    put(tmp_path / "Flickr8k_text" / "Flickr_8k.devImages.txt", "2.jpg\n")
    folder = tmp_path / "Flicker8k_Dataset"
    records = read_flickr_tokens(file)
    assert records == load_dataset(file) == load_dataset(tmp_path / "Flickr8k_text")
    assert records == [
        Record(folder / "1.jpg", ("A child , in pink .", "A girl ."), "train"),
        Record(folder / "2.jpg", (), "dev"),
        Record(folder / "3.jpg.1", ("a#1 b",)),
    ]
    assert [p.name for p in missing_images(records)] == ["2.jpg", "3.jpg.1"]


def test_flickr_token_errors(tmp_path):
    file = put(tmp_path / "f.token.txt", "1.jpg#0\tA dog\n1.jpg A cat\n")
    assert ":2:" in refused(load_dataset, file)
    assert "no captions" in refused(read_flickr_tokens, put(file, "\n"))
    file.write_bytes(b"1.jpg#0\tA dog\n1.jpg#1\tcaf\xe9\n")
    assert ":2: not UTF-8" in refused(read_flickr_tokens, file)
    assert "No such file" in refused(read_flickr_tokens, tmp_path / "none.txt")


def test_caption_csv(tmp_path):
    text = (
        "\ufeffimage,caption\n"
        '1.jpg,"A dog, running ."\n'
        '1.jpg,"He says ""hi"" ."\n'
        "2.jpg,Unquoted , with commas\n"
        "1.jpg, Last .\n\n"
        '2.jpg,"Two\nlines ."\n'
    )
    file = put(tmp_path / "captions.txt", text)
    photos(tmp_path / "Images", "1.jpg")
    records = read_caption_csv(file)
    assert records == load_dataset(file) == load_dataset(tmp_path)
    assert records == [
        Record(tmp_path / "Images" / "1.jpg", ("A dog, running .", 'He says "hi" .', "Last .")),
        Record(tmp_path / "Images" / "2.jpg", ("Unquoted , with commas", "Two lines .")),
    ]


def test_pipe_csv(tmp_path):
    text = (
        "image_name| comment_number| comment\n"
        '1.jpg| 0| Two "young" guys , one | two\n'
        "1.jpg| 4   A dog runs across the grass .\n"
        "2.jpg| 0| \n"
    )
    file = put(tmp_path / "results.csv", text)
    photos(tmp_path / "flickr30k_images", "1.jpg")
    records = read_caption_csv(file)
    assert records == load_dataset(file)
    assert [r.captions for r in records] == [
        ('Two "young" guys , one | two', "A dog runs across the grass ."),
        (),
    ]


def test_csv_errors(tmp_path):
    file = tmp_path / "c.csv"
    assert ":1: the header must be image,caption" in refused(read_caption_csv, put(file, "id,text\n1,a\n"))
    assert ":3:" in refused(read_caption_csv, put(file, "image,caption\n1.jpg,a\n2.jpg\n"))
    assert ":2:" in refused(read_caption_csv, put(file, "image,caption\n,a dog\n"))
    assert ":2:" in refused(read_caption_csv, put(file, 'image,caption\n1.jpg,"never closed\n'))
    assert ":2:" in refused(read_caption_csv, put(file, "image_name|comment_number|comment\n1.jpg|a dog\n"))
    assert "no captions" in refused(read_caption_csv, put(file, "image,caption\n"))


# Folders ---------------------------------------------------------------------------------------------


def test_caption_folder(tmp_path):
    photos(tmp_path, "a.jpg", "sub/B.PNG", "c.d.jpg", "none.jpg")
    put(tmp_path / "a.txt", "\ufeffA dog.\r\n\r\n  A  cat. \r\n")
    put(tmp_path / "sub" / "B.txt", "One")
    put(tmp_path / "c.d.txt", "\n")
    put(tmp_path / "README.txt", "about")
    records = read_caption_folder(tmp_path)
    assert records == load_dataset(tmp_path)
    assert records == [
        Record(tmp_path / "a.jpg", ("A dog.", "A cat.")),
        Record(tmp_path / "c.d.jpg"),
        Record(tmp_path / "none.jpg"),
        Record(tmp_path / "sub" / "B.PNG", ("One",)),
    ]
    (tmp_path / "a.txt").write_bytes(b"ok\ncaf\xe9")
    assert "a.txt:2: not UTF-8" in refused(read_caption_folder, tmp_path)


def test_class_folders(tmp_path):
    photos(tmp_path, "daisy/1.jpg", "daisy/close/2.jpg", "oak tree/1.jpg", ".hidden/1.jpg")
    records = read_class_folders(tmp_path)
    assert records == load_dataset(tmp_path)
    assert [(r.image.name, r.label, r.split) for r in records] == [
        ("1.jpg", "daisy", None),
        ("2.jpg", "daisy", None),
        ("1.jpg", "oak tree", None),
    ]
    photos(tmp_path, "loose.jpg")
    assert "loose.jpg: not in a class folder" in refused(read_class_folders, tmp_path)
    assert all(r.label is None for r in load_dataset(tmp_path))


def test_class_folders_below_splits(tmp_path):
    photos(tmp_path, "train/daisy/1.jpg", "train/oak/2.jpg", "val/daisy/x/3.jpg")
    assert [(r.split, r.label) for r in load_dataset(tmp_path)] == [
        ("train", "daisy"),
        ("train", "oak"),
        ("val", "daisy"),
    ]
    assert len(load_dataset(tmp_path, "val")) == 1
    assert "its splits are train, val" in refused(load_dataset, tmp_path, "test")
    photos(tmp_path, "val/4.jpg")
    assert "4.jpg: not in a class folder" in refused(read_class_folders, tmp_path)


def test_one_folder_of_images_is_not_a_class(tmp_path):
    photos(tmp_path, "images/1.jpg")
    assert load_dataset(tmp_path) == [Record(tmp_path / "images" / "1.jpg")]


def test_folders_without_images(tmp_path):
    for reader in (read_caption_folder, read_class_folders):
        assert "no images" in refused(reader, tmp_path)
        assert "no such folder" in refused(reader, tmp_path / "none")


def test_linked_folder_gives_real_paths_that_can_be_written(tmp_path):
    photos(tmp_path / "real", "a/1.jpg", "b/2.jpg")
    (tmp_path / "link").symlink_to("real")
    records = load_dataset(tmp_path / "link")
    write_jsonl(tmp_path / "link" / "d.jsonl", records)
    assert '"image": "a/1.jpg"' in (tmp_path / "real" / "d.jsonl").read_text()
    assert read_jsonl(tmp_path / "real" / "d.jsonl") == records == load_dataset(tmp_path / "link")


# load_dataset ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_name", ["d.jsonl", "d.json", "d.txt"])
def test_jsonl_by_content(tmp_path, file_name):
    file = put(tmp_path / file_name, '\n{"image": "1.jpg", "split": "a"}\n{"image": "2.jpg", "split": "b"}\n')
    assert load_dataset(file) == read_jsonl(file)
    assert load_dataset(file, "b") == read_jsonl(file, "b")
    assert load_dataset(tmp_path) == read_jsonl(file)
    assert "give no images folder" in refused(load_dataset, file, images=tmp_path)


def test_jsonl_errors_come_with_their_line(tmp_path):
    for content in ("{'image': 1}\n", '{"images": ["1.jpg"]}\n', '["1.jpg"]\n', '{"image": ""}'):
        assert ":1: " in refused(load_dataset, put(tmp_path / "d.jsonl", content))
    assert ":2: " in refused(load_dataset, put(tmp_path / "d.jsonl", '{"image": "1.jpg"}\n{"image": 2}\n'))


def test_pretty_printed_json(tmp_path):
    file = tmp_path / "captions_val2017.json"
    put(file, json.dumps(COCO, indent=2))
    photos(tmp_path / "images", "0042.jpg")
    assert load_dataset(file)[0].meta == {"image_id": 42}


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("hello there\n", "it begins with 'hello there'"),
        ("id\ttext\n", "it begins with"),
        ("[1, 2]", "JSON list"),
        ("{}", "(none)"),
        ('{"a": 1, "b": 2}', "keys a, b"),
        ('{"images": []}', "keys images"),
        ('{"images": ["x"]}', "keys images"),
        ("{oops", "not valid JSON"),
        ('{"images": [{"id": 1}], "annotations": [{"bbox": [1, 2, 3, 4]}]}', "annotations are not captions"),
    ],
)
def test_what_is_no_dataset_is_described(tmp_path, content, part):
    file = put(tmp_path / "x.dat", content)
    message = refused(load_dataset, file)
    assert (
        message.startswith(f"{file}: not a dataset (JSONL, COCO captions, Karpathy JSON") and part in message
    )


def test_binary_missing_and_odd_folders(tmp_path):
    photos(tmp_path, "1.png")
    assert "line 1: not UTF-8 text" in refused(load_dataset, tmp_path / "1.png")
    assert "No such file" in refused(load_dataset, tmp_path / "none.jsonl")
    assert "no meaning" in refused(load_dataset, tmp_path, images=tmp_path)
    odd = tmp_path / "odd"
    for name in ("1.pdf", "2.pdf", "Makefile", ".hidden"):
        put(odd / name)
    assert refused(load_dataset, odd).endswith("no images in it; at its top: 2 .pdf, 1 no suffix")
    (tmp_path / "empty").mkdir()
    assert "no files" in refused(load_dataset, tmp_path / "empty")


def test_folder_with_one_or_several_dataset_files(tmp_path):
    photos(tmp_path, "images/1.jpg", "images/2.jpg")
    put(tmp_path / "package.json", {"name": "not a dataset"})
    put(tmp_path / "notes.txt", "notes")
    put(tmp_path / "train.jsonl", {"image": "images/1.jpg"})
    assert [r.image.name for r in load_dataset(tmp_path)] == ["1.jpg"]
    put(tmp_path / "val.jsonl", {"image": "images/2.jpg"})
    assert refused(load_dataset, tmp_path).endswith("several datasets, name one: train.jsonl, val.jsonl")


def test_missing_images_keeps_order_and_takes_any_name(tmp_path):
    photos(tmp_path, "1.jpg")
    names = ["3.jpg", "1.jpg", "2.jpg", "3.jpg", "x" * 5000]
    records = [Record(tmp_path / name) for name in names] + [Record(tmp_path)]
    assert missing_images(records) == [tmp_path / n for n in ("3.jpg", "2.jpg", "x" * 5000)] + [tmp_path]


def test_every_format_survives_conversion_to_jsonl(tmp_path):
    photos(tmp_path / "set" / "images", "0042.jpg", "0.jpg")
    for name, content in {
        "captions_val2017.json": COCO,
        "dataset_coco.json": karpathy(filepath=False),
    }.items():
        records = load_dataset(put(tmp_path / "set" / name, content))
        write_jsonl(tmp_path / "set" / "out.jsonl", records)
        assert load_dataset(tmp_path / "set" / "out.jsonl") == records
