"""What searches print for programs: paths, zero bytes, JSON lines; help and completion."""

from __future__ import annotations

import json
import os
import webbrowser
from datetime import datetime
from pathlib import Path

import pytest
from tiny import save_photos

from mmgem.cli.main import main
from mmgem.cli.output import print_json


@pytest.fixture
def index(tmp_path: Path, tiny_model_folder: Path, capfd: pytest.CaptureFixture[str]) -> Path:
    save_photos(tmp_path / "photos", 3)
    (tmp_path / "photos" / "0001.png").rename(tmp_path / "photos" / "a name.png")
    args = ["index", str(tmp_path / "photos"), "-o", str(tmp_path / "idx"), "-m", str(tiny_model_folder)]
    assert main(args) == 0
    capfd.readouterr()
    return tmp_path / "idx"


def test_all_forms_say_the_same(index: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def said(*options: str) -> str:
        assert main(["search", str(index), "a dog", "-k", "2", *options]) == 0
        return capfd.readouterr().out

    hits = json.loads(said("--json"))["hits"]
    paths = [hit["file"] for hit in hits]
    assert said("--paths") == "".join(f"{path}\n" for path in paths)
    assert said("-0") == said("--null", "--paths") == "".join(f"{path}\0" for path in paths)
    assert [json.loads(line) for line in said("--jsonl").splitlines()] == hits
    assert [line.split("\t")[1] for line in said().splitlines()] == paths
    assert main(["search", str(index), "a dog", "--json", "--paths"]) == 2
    assert "give one of --json and --paths" in capfd.readouterr().err


def test_the_result_in_the_browser(
    index: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    assert main(["search", str(index), "a dog", "--open"]) == 0
    assert opened[0].startswith("file://") and Path(opened[0].removeprefix("file://")).is_file()


def test_nothing_found_is_1_in_every_form(index: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for form, out in ((["--paths"], ""), (["--jsonl"], ""), ([], ""), (["-0"], "")):
        assert main(["search", str(index), "a dog", "--date", "1999", *form]) == 1
        assert capfd.readouterr() == (out, "mmgem: no photo passes the filters\n")


def test_json_of_names_that_are_no_text(capfd: pytest.CaptureFixture[str]) -> None:
    print_json({"file": "caf\udce9\\x.png", "emoji": "\U0001f600", "half": "\ud83d"})
    out = capfd.readouterr().out
    assert json.loads(out) == {"file": "caf\\xe9\\x.png", "emoji": "\U0001f600", "half": "\\ud83d"}
    assert out.isascii() and "\\ud83d\\ude00" in out


@pytest.mark.parametrize("argv", [["-h"], ["search", "-h"], ["store", "search", "-h"], ["corpus", "-h"]])
def test_h_is_help(argv: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    assert capfd.readouterr().out.startswith("Usage: mmgem")


def test_the_shell_completes_verbs(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in (
        ("_MMGEM_COMPLETE", "complete_bash"),
        ("COMP_WORDS", "mmgem se"),
        ("COMP_CWORD", "1"),
    ):
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main([])
    assert "search" in capfd.readouterr().out.split()


def test_a_cosine_that_no_photo_has(index: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["search", str(index), "a dog", "--min-score", "1.1", "--json"]) == 1
    out, err = capfd.readouterr()
    assert json.loads(out)["hits"] == [] and "no photo has a cosine of 1.1; the highest is" in err


def test_by_date(tmp_path: Path, tiny_model_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    paths = save_photos(tmp_path / "photos", 3)
    for day, path in zip((3, 1, 2), paths, strict=True):
        moment = datetime(2021, 5, day, 12, 30).timestamp()
        os.utime(path, (moment, moment))
    idx = str(tmp_path / "idx")
    assert main(["index", str(tmp_path / "photos"), "-o", idx, "-m", str(tiny_model_folder)]) == 0
    capfd.readouterr()
    expected = [("2021-05-03", paths[0]), ("2021-05-02", paths[2]), ("2021-05-01", paths[1])]
    for query in ([], ["a dog"]):
        assert main(["search", idx, *query, "--by-date"]) == 0
        lines = [f"{date} 12:30\t{path}\n" for date, path in expected]
        assert capfd.readouterr().out == "".join(lines)
    assert main(["search", idx, "--by-date", "--date", "..2021-05-02", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    hits = [(hit["file"], hit["date"], hit["score"]) for hit in told["hits"]]
    assert hits == [(str(path), f"{date}T12:30:00", None) for date, path in expected[1:]]
    assert told["photos"] == 2
    assert main(["search", idx]) == 2
