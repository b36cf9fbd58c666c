"""What is written is on the disk before anything relies on it, and never under a name that two share."""

from __future__ import annotations

import ast
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmgem.search.index_store import HashedFile, IndexStore, NewContent
from mmgem.utils import files
from mmgem.utils.files import atomic_file, create_file, read_again_if_replaced, write_atomic, write_folder

PACKAGE = Path(files.__file__).parents[1]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What reaches the disk, in order: (what, the last part of the name)."""
    done: list[tuple[str, str]] = []
    plain_sync, plain_replace, plain_rename, plain_unlink = os.fsync, Path.replace, Path.rename, Path.unlink

    def sync(descriptor: int) -> None:
        done.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        plain_sync(descriptor)

    def replace(self: Path, target: Path) -> Any:
        done.append(("move", target.name))
        return plain_replace(self, target)

    def rename(self: Path, target: Path) -> Any:
        done.append(("move", target.name))
        return plain_rename(self, target)

    def unlink(self: Path, missing_ok: bool = False) -> None:
        if self.exists():
            done.append(("remove", self.name))
        plain_unlink(self, missing_ok)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(Path, "rename", rename)
    monkeypatch.setattr(Path, "unlink", unlink)
    monkeypatch.setattr(
        files.shutil, "rmtree", lambda path, **_: done.append(("remove", Path(path).name)) or None
    )
    return done


linux = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads names of open files")


@linux
def test_a_file_is_synced_before_it_has_its_name_and_the_name_after(tmp_path: Path, steps: list[Any]) -> None:
    write_atomic(tmp_path / "a.json", "{}")
    (written, *rest) = steps
    assert written[0] == "sync" and written[1].startswith(".a.json.")
    assert rest == [("move", "a.json"), ("sync", tmp_path.name)]


@linux
def test_an_old_folder_goes_when_the_new_one_is_sure_to_stay(tmp_path: Path, steps: list[Any]) -> None:
    folder = tmp_path / "model"
    folder.mkdir()

    def fill(new: Path) -> None:
        (new / "sub").mkdir()
        (new / "sub" / "weights").write_text("w")

    write_folder(folder, fill)
    relevant = [step for step in steps if step[1] != "model.mmgem-lock"]
    synced, rest = relevant[:3], relevant[3:]
    assert {name for _, name in synced} == {"sub", "weights", "model.mmgem-new"}
    assert rest == [
        ("move", "model.mmgem-old"),
        ("move", "model"),
        ("sync", tmp_path.name),
        ("remove", "model.mmgem-old"),
    ]


@linux
def test_compaction_removes_the_old_vectors_when_the_manifest_is_sure_to_stay(
    tmp_path: Path, steps: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmgem.search.index_store._MIN_DEAD_ROWS", 1)
    vectors = np.eye(4, dtype=np.float32)
    with IndexStore(tmp_path / "index", "f") as store:
        # Whatever removes the journal, its folder is synced before a transaction ends.
        assert store._db.execute("PRAGMA synchronous").fetchone() == (3,)
        contents = [NewContent(bytes([n]), vectors[n : n + 1], [None]) for n in range(4)]
        store.record(contents, [HashedFile(f"{n}.png", 1, 1, bytes([n])) for n in range(4)])
        assert ("sync", "index") in steps, "the name of the vectors' file"
        store.forget(["0.png", "1.png"])
        steps.clear()
        store.compact()
    assert steps[:2] == [("sync", "vectors-1.f32"), ("sync", "index")]
    (sums,) = [n for n, step in enumerate(steps) if step == ("move", ".photos.sqlite3.crc32")]
    assert ("sync", "index") in steps[sums:]  # of the manifest that names them
    assert ("remove", "vectors-0.f32") in steps[2:]


def test_two_writers_of_a_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "v.npy"
    with atomic_file(path) as one, atomic_file(path) as other:
        one.write(b"one")
        other.write(b"the other")
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_arrays_and_pictures_are_not_written_past_python(tmp_path: Path) -> None:
    """NumPy and Pillow would write to the number of a file, where they do not notice that it is cut."""
    array, picture = np.arange(5.0), Image.effect_noise((40, 40), 50).convert("RGB")
    np.save(tmp_path / "a.npy", array)
    picture.save(tmp_path / "p", "JPEG", quality=92)
    with create_file(tmp_path / "b") as file:
        with pytest.raises(OSError):
            file.fileno()
        np.save(file, array)
    with create_file(tmp_path / "q") as file:
        picture.save(file, "JPEG", quality=92)
    for theirs, ours in (("a.npy", "b"), ("p", "q")):
        assert (tmp_path / theirs).read_bytes() == (tmp_path / ours).read_bytes()


def test_nothing_is_left_of_a_write_that_fails(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 120)  # no temporary name is longer than file systems take
    write_atomic(path, "old")
    with pytest.raises(ValueError, match="midway"), atomic_file(path) as file:
        file.write(b"half")
        raise ValueError("midway")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_replaced_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    folder, calls = tmp_path / "f", []

    def write(text: str) -> None:
        write_folder(folder, lambda new: [(new / n).write_text(text) for n in ("a", "b")] and None)

    @read_again_if_replaced
    def read(folder: Path) -> str:
        first = (folder / "a").read_text()
        calls.append(first)
        if len(calls) == 1:
            write("new")
        return first + (folder / "b").read_text()

    write("old")
    assert read(folder) == "newnew"
    assert calls == ["old", "new"]


def test_every_rename_is_a_durable_one() -> None:
    """Whoever needs another name for a file asks ``utils/files.py``, which syncs what has to be."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name in ("files.py", "feature_cache.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                alone = len(node.args) == 1 and not node.keywords
                if (node.func.attr in ("replace", "rename") and alone) or node.func.attr == "renames":
                    found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert found == []


def test_the_writers_lock_of_an_index_is_gone_when_it_is_closed(tmp_path: Path) -> None:
    with closing(IndexStore(tmp_path / "index", "f")._lock):
        assert (tmp_path / "index" / "lock").exists()
    assert not (tmp_path / "index" / "lock").exists()
