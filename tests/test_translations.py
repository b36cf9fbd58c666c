"""Captions in other languages from a file beside the data."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import pytest
import toys

from mmgem.cli.main import main
from mmgem.data.readers import add_captions, in_language
from mmgem.data.records import Record
from mmgem.errors import DataError, UsageError

RECORDS = [Record(Path(f"/photos/{n}.jpg"), (f"photo {n}",), split="dev") for n in range(3)]


def put(path: Path, *lines: object) -> Path:
    text = "".join((x if isinstance(x, str) else json.dumps(x, ensure_ascii=False)) + "\n" for x in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_captions_go_to_the_records_of_the_image(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = put(
        tmp_path / name,
        {"image": "images/1.jpg", "split": "train", "id": 7, "en": "one", "de": ["eins", "erstens"]},
        "",
        {"image": "0.jpg", "ko": "영", "de": None},
        {"image": "1.jpg", "de": "ein Foto", "captions_cs": "jedna"},
        {"image": "9.jpg", "de": "neun"},
    )
    with caplog.at_level(logging.WARNING, "mmgem"):
        zero, one, two = add_captions(RECORDS, path)
    assert zero.translations == {"ko": ("영",)}
    assert one.translations == {"en": ("one",), "de": ("eins", "erstens", "ein Foto"), "cs": ("jedna",)}
    assert two == RECORDS[2] and one.split == "dev" and one.captions == ("photo 1",)
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}: 1 of 4 lines are for images that are not in the data"
    ]
    assert [record.captions for record in in_language([zero, one, two], "de")] == [
        ("eins", "erstens", "ein Foto")
    ]
    assert [record.captions for record in in_language([zero, one], "en")] == [("one",)]
    assert in_language(RECORDS, "en") == RECORDS
    assert not RECORDS[0].translations
    with pytest.raises(UsageError, match="'fr'; there are cs, de, en, ko"):
        in_language([zero, one, two], "fr")


def test_images_of_the_same_name(tmp_path: Path) -> None:
    records = [Record(Path(f"/photos/{folder}/1.jpg")) for folder in ("a", "b", "b")]
    added = add_captions(records, put(tmp_path / "t.jsonl", {"image": "b/1.jpg", "de": "x"}))
    assert [bool(record.translations) for record in added] == [False, True, True]
    with pytest.raises(DataError, match=r"t.jsonl:1: image 1.jpg may be 2 images"):
        add_captions(records, put(tmp_path / "t.jsonl", {"image": "1.jpg", "de": "x"}))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not a JSON object on one line"),
        ("[1]", "must be one JSON object"),
        ({"de": "x"}, 'no "image"'),
        ({"image": 3, "de": "x"}, "image must be a file path"),
        ({"image": "1.jpg"}, "no captions"),
        ({"image": "1.jpg", "de": 3}, "de must be a string or a list of strings, not a number"),
        ({"image": "1.jpg", "de": ["x", ""]}, r"de\[1\] is empty"),
        ("[" * 100_000, "nested"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, line: object, message: str) -> None:
    path = put(tmp_path / "t.jsonl", {"image": "1.jpg", "de": "x"}, line)
    with pytest.raises(DataError, match=f"t.jsonl:2: {message}|t.jsonl:2: .*{message}"):
        add_captions(RECORDS, path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        add_captions(RECORDS, tmp_path / "none.jsonl")
    path = put(tmp_path / "t.jsonl.gz", {"image": "1.jpg", "de": "x" * 99})
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match="damaged gzip"):
        add_captions(RECORDS, path)
    path.write_text("no gzip")
    with pytest.raises(DataError, match="damaged gzip"):
        add_captions(RECORDS, path)
    with pytest.raises(DataError, match="the file is empty"):
        add_captions(RECORDS, put(tmp_path / "e.jsonl", ""))
    (tmp_path / "l.jsonl").write_bytes(b'{"image": "1.jpg", "de": "\xff"}')
    with pytest.raises(DataError, match=r"l.jsonl:1: not UTF-8"):
        add_captions(RECORDS, tmp_path / "l.jsonl")


def test_eval_retrieval_in_another_language(
    tmp_path: Path, tiny_model_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    dataset = toys.photos(tmp_path / "set", train=4, dev=8)
    data = ["--model", tiny_model_folder, "--data", dataset, "--split", "dev"]
    images = [json.loads(line)["image"] for line in dataset.read_text("utf-8").splitlines()]
    lines = [{"image": f"x/{image}", "en": "a dog", "de": "der Hund"} for image in images[4:10]]
    file = put(tmp_path / "t.jsonl.gz", *lines)

    def run(*arguments: object, code: int = 0) -> tuple[str, str]:
        capfd.readouterr()
        assert main(["eval", *map(str, arguments)]) == code
        out, err = capfd.readouterr()
        return out, err

    for language in ("de", "en"):
        out, err = run("retrieval", *data, "--captions", file, "--language", language, "--json")
        scores = json.loads(out)
        assert (scores["images"], scores["texts"], scores["language"]) == (6, 6, language)
        assert "2 of 8 records have no captions in" in err
    shown = run("retrieval", *data, f"--captions={file}", "--language", "de")[0].splitlines()
    assert shown[-1].split() == ["language", "de"]
    scores = json.loads(run("retrieval", *data, "--language", "en", "--json")[0])
    assert (scores["texts"], scores["language"]) == (24, "en")
    for arguments, message in (
        (["retrieval", *data, "--captions", file, "--language", "ko"], "'ko'; there are de, en"),
        (["retrieval", *data, "--language", "ko"], "one language only"),
        (["retrieval", *data, "--language", "Korean"], "two or three small letters"),
        (["retrieval", *data, "--captions", file], "--captions FILE needs --language"),
        (["retrieval", *data, "--captions"], "--captions is for eval region"),
        (["caption", *data, "--language", "de"], "--language is for eval retrieval"),
        (["region", *data, "--captions", file], "--captions FILE is for eval retrieval"),
    ):
        assert message in run(*arguments, code=2)[1]
