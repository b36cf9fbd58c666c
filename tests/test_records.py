"""The JSONL dataset contract: what is read, what is refused and how it is said, what is written."""

from __future__ import annotations

import gc
import json
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgem.data.readers import load_dataset
from mmgem.data.records import Media, Record, Region, keep_split, read_jsonl, write_jsonl
from mmgem.errors import DataError, UsageError


def put(path: Path, *lines: str | dict) -> Path:
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), "utf-8")
    return path


def refusal(path: Path, split: str | None = None) -> str:
    with pytest.raises((DataError, UsageError)) as error:
        read_jsonl(path, split)
    message = str(error.value)
    assert "\n" not in message and message.startswith(str(path))
    return message.removeprefix(str(path))


def test_all_fields(tmp_path):
    line = {
        "image": "images/1.jpg",
        "captions": ["A dog .", "Zwei Hunde \u2028 🐕"],
        "split": "train",
        "label": "dog",
        "regions": [{"box": [0, 1.5, 10, 20], "captions": ["its ear"], "id": 7}, {"box": [-3, 0, 1, 1]}],
        "width": 640,
        "source": {"url": "http://example.org"},
    }
    (record,) = read_jsonl(put(tmp_path / "d.jsonl", line))
    assert record == Record(
        media=Media("image", (tmp_path / "images" / "1.jpg",)),
        captions=("A dog .", "Zwei Hunde \u2028 🐕"),
        split="train",
        label="dog",
        regions=(
            Region((0.0, 1.5, 10.0, 20.0), ("its ear",), {"id": 7}),
            Region((-3.0, 0.0, 1.0, 1.0)),
        ),
        meta={"width": 640, "source": {"url": "http://example.org"}},
    )
    assert all(type(n) is float for n in record.regions[0].box)
    assert hash(record) == hash(read_jsonl(tmp_path / "d.jsonl")[0])


def test_only_image_is_required_and_null_means_absent(tmp_path):
    nulls = dict.fromkeys(["captions", "split", "label", "regions"])
    records = read_jsonl(put(tmp_path / "d.jsonl", {"image": "1.jpg"}, {"image": "1.jpg", **nulls}))
    assert records == [Record(tmp_path / "1.jpg")] * 2


def test_captions_in_other_languages(tmp_path):
    line = {
        "image": "1.jpg",
        "captions": ["a dog"],
        "captions_ko": ["개", "강아지"],
        "captions_fr": None,
        "captions_other": {"de": "ein Hund", "cs": ["pes"]},
        "captions_pt_BR": "um cachorro",
        "captions_source": "x",
        "captions_alt_text": 3,
    }
    (record,) = read_jsonl(put(tmp_path / "d.jsonl", line))
    assert record.translations == {"ko": ("개", "강아지"), "de": ("ein Hund",), "cs": ("pes",)} | {
        "pt_BR": ("um cachorro",)
    }
    assert record.captions == ("a dog",)
    assert record.meta == {"captions_source": "x", "captions_alt_text": 3}
    write_jsonl(tmp_path / "e.jsonl", [record])
    assert read_jsonl(tmp_path / "e.jsonl") == [record]
    assert json.loads((tmp_path / "e.jsonl").read_text("utf-8"))["captions_de"] == ["ein Hund"]
    with pytest.raises(DataError, match="captions_de is the name of a field"):
        write_jsonl(tmp_path / "e.jsonl", [replace(record, meta={"captions_de": 1})])


def test_blank_lines_mark_windows_line_ends_and_no_last_newline(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"image": "1.jpg"}\r\n\r\n  \t\n{"image": "2.jpg"}')
    assert [r.image.name for r in read_jsonl(file)] == ["1.jpg", "2.jpg"]
    file.write_bytes(b'\xef\xbb\xbf\n{"image": "1.jpg"}\n')
    assert len(read_jsonl(file)) == 1


def test_paths_are_those_seen_from_the_file(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    put(
        tmp_path / "real" / "d.jsonl",
        {"image": "../x/1.jpg"},
        {"image": "/abs/2.jpg"},
        {"image": "a//./b.jpg"},
    )
    expected = [tmp_path / "x" / "1.jpg", Path("/abs/2.jpg"), tmp_path / "real" / "a" / "b.jpg"]
    monkeypatch.chdir(tmp_path / "real")
    for path in ("d.jsonl", tmp_path / "link" / "d.jsonl", tmp_path / "real" / "d.jsonl"):
        assert [r.image for r in read_jsonl(path)] == expected
    (tmp_path / "elsewhere").mkdir()  # a linked file: its images are beside the link
    (tmp_path / "elsewhere" / "d.jsonl").symlink_to(tmp_path / "real" / "d.jsonl")
    assert read_jsonl(tmp_path / "elsewhere" / "d.jsonl")[2].image == tmp_path / "elsewhere" / "a" / "b.jpg"


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ('{"image": "1.jpg"', ["not a JSON object on one line", "column"]),
        ("{", ["not a JSON object on one line"]),
        ("{'image': '1.jpg'}", ["not a JSON object on one line"]),
        ('{"image": "1.jpg"} {"image": "2.jpg"}', ["not a JSON object on one line"]),
        ("[" * 100_000, ["nested"]),
        ('{"n": ' + "1" * 5000 + "}", ["digits"]),
        ('["1.jpg", "a dog"]', ["one JSON object, not a list"]),
        ('"1.jpg"', ["one JSON object, not a string"]),
        ({}, ['no "image"']),
        ({"captions": ["a dog"]}, ['no "image"']),
        ({"image": ""}, ["image must be a file path, not an empty string"]),
        ({"image": None}, ["image must be a file path, not null"]),
        ({"image": 5}, ["image must be a file path, not a number"]),
        ({"image": ["1.jpg"]}, ["image must be a file path, not a list"]),
        ({"image": "a\0b"}, ["image must be a file path"]),
        ({"image": "https://example.org/1.jpg"}, ["URLs are not fetched", "example.org"]),
        ({"image": "1", "captions": "a dog"}, ["captions must be a list of strings", "not a string"]),
        ({"image": "1", "captions": {"0": "a dog"}}, ["captions must be a list", "not an object"]),
        ({"image": "1", "caption": "a dog"}, ["caption is not a field", '"captions": ["..."]', "list"]),
        ({"image": "1", "captions": ["a", 3]}, ["captions[1] must be a string, not a number"]),
        ({"image": "1", "captions": ["a", None]}, ["captions[1] must be a string, not null"]),
        ({"image": "1", "captions": ["a", ""]}, ["captions[1] is empty"]),
        ({"image": "1", "captions": [" \n\u00a0"]}, ["captions[0] is empty"]),
        ({"image": "1", "captions_de": 3}, ["captions_de must be a string or a list of strings", "a number"]),
        ({"image": "1", "captions_de": " "}, ["captions_de is empty"]),
        ({"image": "1", "captions_de": ["a", 3]}, ["captions_de[1] must be a string, not a number"]),
        ({"image": "1", "captions_other": ["a"]}, ["captions_other must be an object", "not a list"]),
        ({"image": "1", "captions_other": {"German": "a"}}, ["captions_other.German", "two or three"]),
        ({"image": "1", "captions_other": {"de": ""}}, ["captions_other.de is empty"]),
        (
            {"image": "1", "captions_de": "a", "captions_other": {"de": "b"}},
            ["captions_other.de", "captions_de too"],
        ),
        ({"image": "1", "split": 1}, ["split must be a non-empty string, not a number"]),
        ({"image": "1", "split": " "}, ["split must be a non-empty string, not an empty string"]),
        ({"image": "1", "label": 3}, ["label must be a non-empty string, not a number"]),
        ({"image": "1", "label": True}, ["label", "not true or false"]),
        ({"image": "1", "regions": {}}, ["regions must be a list of objects, not an object"]),
        ({"image": "1", "regions": [[0, 0, 1, 1]]}, ["regions[0] must be an object, not a list"]),
        ({"image": "1", "regions": [{"captions": ["a"]}]}, ["regions[0].box must be 4 finite", "null"]),
        ({"image": "1", "regions": [{"box": [0, 0, 1]}]}, ["regions[0].box must be 4 finite", "[0, 0, 1]"]),
        ({"image": "1", "regions": [{"box": "0,0,1,1"}]}, ["regions[0].box must be 4 finite"]),
        ({"image": "1", "regions": [{"box": [0, 0, 1, "1"]}]}, ["regions[0].box must be 4 finite"]),
        ({"image": "1", "regions": [{"box": [0, 0, 1, True]}]}, ["regions[0].box must be 4 finite"]),
        ({"image": "1", "regions": [{"box": [0, 0, 1, float("nan")]}]}, ["regions[0].box", "NaN"]),
        ({"image": "1", "regions": [{"box": [0, 0, float("inf"), 1]}]}, ["regions[0].box", "Infinity"]),
        ({"image": "1", "regions": [{"box": [0, 0, 10**400, 1]}]}, ["regions[0].box must be 4 finite"]),
        (
            {"image": "1", "regions": [{"box": [0, 0, 1, 1]}, {"box": [5, 5, 5, 9]}]},
            ["regions[1].box", "x0 < x1"],
        ),
        ({"image": "1", "regions": [{"box": [50, 50, 20, 90]}]}, ["width, height"]),
        (
            {"image": "1", "regions": [{"box": [0, 0, 1, 1], "captions": "a"}]},
            ["regions[0].captions must be"],
        ),
        ({"image": "1", "regions": [{"box": [0, 0, 1, 1], "captions": [""]}]}, ["regions[0].captions[0] is"]),
        ({"image": "1", "regions": [{"box": [0, 0, 1, 1], "caption": "a"}]}, ["regions[0].caption is not"]),
    ],
)
def test_errors_name_line_and_field(tmp_path, line, parts):
    message = refusal(put(tmp_path / "d.jsonl", {"image": "0.jpg"}, "", line))
    assert message.startswith(":3: ")
    for part in parts:
        assert part in message


def test_not_utf8_names_the_line(tmp_path):
    file = tmp_path / "d.jsonl"
    file.write_bytes(b'{"image": "1.jpg"}\n{"image": "caf\xe9.jpg"}\n')
    assert refusal(file) == ":2: not UTF-8 text"
    file.write_bytes('{"image": "1.jpg"}\n'.encode("utf-16"))
    assert refusal(file) == ":1: not UTF-8 text but UTF-16; save it as UTF-8"


def test_files_without_records(tmp_path):
    for text in ("", "\n \n"):
        file = tmp_path / "d.jsonl"
        file.write_text(text)
        assert "empty" in refusal(file)
    assert "No such file" in refusal(tmp_path / "none.jsonl")
    assert "directory" in refusal(tmp_path)


def test_split(tmp_path):
    lines = [{"image": f"{i}.jpg", "split": s} for i, s in enumerate(["train", "dev", "train"])]
    file = put(tmp_path / "d.jsonl", *lines, {"image": "3.jpg"})
    assert [r.image.stem for r in read_jsonl(file, "train")] == ["0", "2"]
    assert len(read_jsonl(file)) == 4
    assert "no split 'test'; its splits are dev, train" in refusal(file, "test")
    assert "name no split" in refusal(put(tmp_path / "e.jsonl", {"image": "1.jpg"}), "test")
    with pytest.raises(UsageError, match="anything"):
        keep_split([], "train", "anything")


@pytest.mark.parametrize("enabled", [True, False])
def test_reading_leaves_the_garbage_collector_as_it_was(tmp_path, enabled):
    file = put(tmp_path / "d.jsonl", {"image": "1.jpg"}, {"image": ""})
    try:
        if not enabled:
            gc.disable()
        refusal(file)
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


def test_lines_after_the_wanted_split_are_still_checked(tmp_path):
    assert refusal(put(tmp_path / "d.jsonl", {"image": "1", "split": "a"}, {"split": "b"}), "a").startswith(
        ":2"
    )


def test_written_paths_are_relative(tmp_path):
    out = tmp_path / "sets" / "new" / "d.jsonl"
    images = [tmp_path / "sets" / "new" / "i" / "1.jpg", tmp_path / "photos" / "2.jpg"]
    write_jsonl(out, [Record(image) for image in images])
    assert [json.loads(x)["image"] for x in out.read_text().splitlines()] == ["i/1.jpg", "../../photos/2.jpg"]
    assert [r.image for r in read_jsonl(out)] == images
    (tmp_path / "sets").rename(tmp_path / "moved")
    assert read_jsonl(tmp_path / "moved" / "new" / "d.jsonl")[0].image.is_relative_to(tmp_path / "moved")


def test_relative_images_are_seen_from_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl("sub/d.jsonl", [Record(Path("1.jpg"))])
    assert read_jsonl("sub/d.jsonl")[0].image == tmp_path / "1.jpg"


def test_absent_fields_are_not_written(tmp_path):
    write_jsonl(tmp_path / "d.jsonl", [Record(tmp_path / "ä.jpg", ("grün",))])
    assert (tmp_path / "d.jsonl").read_text("utf-8") == '{"image": "ä.jpg", "captions": ["grün"]}\n'


def test_file_names_that_are_not_unicode(tmp_path):
    record = Record(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")), ("ok",))
    write_jsonl(tmp_path / "d.jsonl", [record])
    assert read_jsonl(tmp_path / "d.jsonl") == [record]


def test_writing_is_all_or_nothing(tmp_path):
    file = put(tmp_path / "d.jsonl", {"image": "old.jpg"})
    before = file.read_bytes()
    good = Record(tmp_path / "1.jpg")
    for bad, part in [
        (Record(tmp_path / "2.jpg", meta={"x": object()}), "2.jpg: meta"),
        (Record(tmp_path / "2.jpg", meta={"label": "x"}), "label is the name of a field"),
        (Record(tmp_path / "2.jpg", regions=(Region((0, 0, 1, 1), meta={"box": 1}),)), "box is the name"),
    ]:
        with pytest.raises(DataError, match=part):
            write_jsonl(file, [good, bad])
    with pytest.raises(UsageError, match="no records"):
        write_jsonl(file, [])
    with pytest.raises(UsageError, match="cannot be written"):
        write_jsonl(file / "below_a_file" / "d.jsonl", [good])

    def breaking():
        yield good
        raise RuntimeError("reader failed")

    with pytest.raises(RuntimeError):
        write_jsonl(file, breaking())
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]
    write_jsonl(file, [good])
    assert read_jsonl(file) == [good] and list(tmp_path.iterdir()) == [file]


text = st.text(min_size=1, max_size=12).filter(
    lambda s: s.strip() and not any(0xD800 <= ord(c) < 0xE000 for c in s)
)
name = text.filter(lambda s: not set(s) & set("/\0\\:") and s not in (".", ".."))
value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | text,
    lambda x: st.lists(x, max_size=3) | st.dictionaries(text, x, max_size=3),
    max_leaves=5,
)
fields = {"image", "captions", "caption", "split", "label", "regions", "box"}
meta = st.dictionaries(text.filter(lambda k: k not in fields), value, max_size=3)
captions = st.lists(text, max_size=3).map(tuple)
number = st.floats(-1e6, 1e6)
boxes = st.tuples(number, number, st.floats(0.5, 1e4), st.floats(0.5, 1e4)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
regions = st.lists(st.builds(Region, boxes, captions, meta), max_size=2).map(tuple)
paths = st.lists(name, min_size=1, max_size=3).map(lambda parts: Path("/data", *parts))
record_lists = st.lists(
    st.builds(Record, paths, captions, st.none() | text, st.none() | text, regions, meta),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(record_lists)
def test_round_trip(tmp_path_factory, records):
    file = tmp_path_factory.getbasetemp() / "round_trip.jsonl"
    write_jsonl(file, records)
    assert read_jsonl(file) == records


def test_an_image_is_media_of_one_source(tmp_path):
    record = Record(tmp_path / "1.jpg", ("A dog.",), label="dog")
    assert record.media == Media("image", (tmp_path / "1.jpg",)) and record.image == tmp_path / "1.jpg"
    assert Record(record.media, ("A dog.",), label="dog") == record
    assert replace(record, captions=()) == Record(tmp_path / "1.jpg", label="dog")
    assert pickle.loads(pickle.dumps(record)) == record  # as workers get it
    clip = Record(Media("video", (tmp_path / "1.mp4",)))
    with pytest.raises(UsageError, match=r"1\.mp4: is a video, and only images"):
        _ = clip.image


CLIP = {"video": "trip/a.mp4", "start": 3, "end": 7.5, "captions": ["A dog."], "video_id": 7}


def test_clips(tmp_path):
    file = tmp_path / "clips.jsonl"
    rows = [CLIP, {"video": "b.gif"}, {"video": "b.gif", "start": None, "end": None, "captions_de": "Hund"}]
    rows += [{"image": "c.jpg", "video": "c.mov", "start": 1, "end": "late"}]  # a live photo, say: an image
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, whole, other, image = records = read_jsonl(file)
    assert first.media == Media("video", (tmp_path / "trip" / "a.mp4",), (3.0, 7.5))
    assert first.source is first.media and first.meta == {"video_id": 7} and first.captions == ("A dog.",)
    assert (str(first.media), first.media.name) == (f"{tmp_path}/trip/a.mp4 3-7.5", "a.mp4 3-7.5")
    assert whole.media == other.media == Media("video", (tmp_path / "b.gif",)) and str(whole.media).endswith(
        ".gif"
    )
    assert image.source == image.image == tmp_path / "c.jpg"
    assert image.meta == {"video": "c.mov", "start": 1, "end": "late"}
    with pytest.raises(UsageError, match=r"a\.mp4: is a video, and only images"):
        _ = first.image
    write_jsonl(tmp_path / "again.jsonl", records)
    assert read_jsonl(tmp_path / "again.jsonl") == records == load_dataset(tmp_path / "again.jsonl")
    (tmp_path / "one.json").write_text(json.dumps(CLIP))
    assert load_dataset(tmp_path / "one.json") == [first]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": None}, "start and end must be seconds, 0 or more, both or none, not null and 7.5"),
        ({"end": None}, "start and end must be seconds, 0 or more, both or none, not 3 and null"),
        ({"start": 8}, "start and end must be seconds"),
        ({"start": -1}, "start and end must be seconds"),
        ({"start": True}, "start and end must be seconds"),
        ({"end": "7"}, "start and end must be seconds"),
        ({"end": 10**400}, "start and end must be seconds"),
        ({"video": ""}, "video must be a file path, not an empty string"),
        ({"video": ["a.mp4"]}, "video must be a file path, not a list"),
        ({"video": "http://a/b.mp4"}, "video must be a file path, URLs are not fetched"),
        ({"regions": [{"box": [0, 0, 1, 1]}]}, "regions: clips have none"),
    ],
)
def test_malformed_clips(tmp_path, change, message):
    (tmp_path / "a.jsonl").write_text(json.dumps(CLIP | change))
    with pytest.raises(DataError, match=re.escape(f"a.jsonl:1: {message}")):
        read_jsonl(tmp_path / "a.jsonl")


def test_a_video_is_no_image(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"image": "a.MP4", "captions": ["A dog."]}')
    with pytest.raises(DataError, match=r'a\.jsonl:1: image is a video; write "video": "a\.MP4"'):
        read_jsonl(tmp_path / "a.jsonl")
