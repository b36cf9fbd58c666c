"""Two writers of one folder: each one's work is there afterwards, or it was refused by name."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import toys
from test_cli_pull import wheel
from tiny import save_photos

import mmgem.data.shards.write as pack_file
import mmgem.train.loop as loop
from mmgem.checkpoints import download
from mmgem.checkpoints.model_folder import save_model
from mmgem.checkpoints.model_lock import RUN_LOCK, lock_model
from mmgem.data.records import Record
from mmgem.data.shards.write import pack
from mmgem.errors import BusyError, CheckpointError, ConfigError, UsageError
from mmgem.export.compress import compress_model
from mmgem.self_retrieval.corpus import FOLDER, Corpus
from mmgem.self_retrieval.model import SelfRetrieval
from mmgem.self_retrieval.prompts import Prompts
from mmgem.train.loop import train
from mmgem.utils.locks import FileLock, holder_of

PASSAGES = toys.passages()
ME = f"process {os.getpid()} on "


@pytest.fixture
def learned(tmp_path: Path) -> Path:
    tokenizer = toys.tokenizer()
    corpus = Corpus.build(PASSAGES[:5], Prompts(tokenizer))
    save_model(tmp_path / "model", toys.network("llama", "none"), tokenizer, "", more=corpus.save_in)
    return tmp_path / "model"


def ids(model: Path) -> list[str]:
    return [passage.id for passage in Corpus.open(model / FOLDER).passages]


def test_what_two_have_added_is_all_there(learned: Path) -> None:
    """Both have read the corpus before either writes it."""
    one, other = SelfRetrieval.from_pretrained(learned), SelfRetrieval.from_pretrained(learned)
    one.add(PASSAGES[5:7])
    other.add(PASSAGES[7:])
    assert ids(learned) == [passage.id for passage in PASSAGES]
    assert len(other.search(["the dog"], 50)[0]) == len(PASSAGES)


def test_who_adds_waits_for_another(learned: Path) -> None:
    engine, added = SelfRetrieval.from_pretrained(learned), []

    def add() -> None:
        engine.add(PASSAGES[5:])
        added.append(time.monotonic())

    thread = threading.Thread(target=add)
    with lock_model(learned):
        thread.start()
        time.sleep(0.5)
        released = time.monotonic()
        assert len(ids(learned)) == 5 and not added
    thread.join()
    assert added[0] > released and len(ids(learned)) == len(PASSAGES)


def test_nothing_is_added_to_another_model_than_was_loaded(learned: Path) -> None:
    engine = SelfRetrieval.from_pretrained(learned)
    tokenizer = toys.tokenizer()
    corpus = Corpus.build(PASSAGES[:2], Prompts(tokenizer))
    save_model(learned, toys.network("llama", "none", seed=1), tokenizer, "", more=corpus.save_in)
    with pytest.raises(CheckpointError, match="holds another model than was loaded"):
        engine.add(PASSAGES[5:])
    assert len(ids(learned)) == 2


def test_a_model_in_training_is_not_added_to(learned: Path) -> None:
    engine = SelfRetrieval.from_pretrained(learned)
    said = f"model: {ME}.* is training this model; wait until it is done"
    with FileLock(learned.parent / RUN_LOCK), pytest.raises(BusyError, match=said):
        engine.add(PASSAGES[5:])
    engine.add(PASSAGES[5:])


def test_a_copy_in_place_is_made_while_nobody_writes(learned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the read on: what is added in between would not be in the copy, which replaces it."""
    held = []
    plain = Corpus.open

    def opened(folder: Path) -> Corpus:
        held.append(holder_of(learned.with_name("model.mmgem-lock")))
        return plain(folder)

    monkeypatch.setattr(Corpus, "open", opened)
    compress_model(learned, learned)
    compress_model(learned, learned.with_name("copy"))
    assert held[0] is not None and held[0].startswith(ME)
    assert held[1] is None


def records(folder: Path, count: int = 6) -> list[Record]:
    return [Record(photo, ("a dog",), split="train") for photo in save_photos(folder, count)]


class Killed(BaseException):
    """A kill, as the code it hits sees it."""


def test_a_pack_killed_before_its_first_line_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its first shard, before its log says so."""
    rows, out, plain = records(tmp_path / "photos"), tmp_path / "out", pack_file.write_atomic

    def dying(path: Path, text: str) -> None:
        if "samples" in text:
            raise Killed
        plain(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(pack_file, "write_atomic", dying)
        with pytest.raises(Killed):
            pack(rows, out, per_shard=2)
    assert [path.name for path in out.glob("*.tar")] == ["train-00000.tar"]
    made = pack(rows, out, per_shard=2)
    whole = pack(rows, tmp_path / "whole", per_shard=2)
    assert [path.read_bytes() for path in made.shards] == [path.read_bytes() for path in whole.shards]
    names = [{path.name for path in folder.iterdir()} for folder in (out, tmp_path / "whole")]
    assert names[0] == names[1]


def test_a_pack_killed_before_its_first_shard_can_be_given_other_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, out = records(tmp_path / "photos"), tmp_path / "out"

    def dying(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setitem(pack_file._WRITERS, "tar", dying)
        with pytest.raises(Killed):
            pack(rows, out, per_shard=2)
    (out / ".train-00000.tar.1-aaaa.tmp").write_bytes(b"half")  # what a real kill leaves
    assert pack(rows, out, per_shard=3).samples == 6
    assert sorted(path.name for path in out.iterdir() if path.suffix != ".crc32") == [
        "train-00000.tar",
        "train-00001.tar",
        "train.pack.json",
    ]
    with pytest.raises(UsageError, match="of other data or options"):
        pack(rows, out, per_shard=2)


def test_a_split_is_packed_by_one_at_a_time(tmp_path: Path) -> None:
    rows, out = records(tmp_path / "photos"), tmp_path / "out"
    out.mkdir()
    with FileLock(out / "train.pack.lock"):
        with pytest.raises(BusyError, match=rf"train.pack.json: {ME}.* is writing here"):
            pack(rows, out)
        pack([dataclasses.replace(row, split="dev") for row in rows], out)
    assert pack(rows, out).samples == 6


def test_two_runs_do_not_train_into_one_folder(tmp_path: Path) -> None:
    data, bases = toys.photos(tmp_path / "data"), toys.base_models(tmp_path)
    recipe = toys.recipe(tmp_path, data, *bases, train__epochs=1)
    recipe.train.out.mkdir()
    out = re.escape(str(recipe.train.out))
    with FileLock(recipe.train.out / RUN_LOCK):
        began = time.monotonic()
        with pytest.raises(BusyError, match=rf"train.out: {ME}.* is training into {out}"):
            train(recipe)
        assert time.monotonic() - began < 5
    assert list(recipe.train.out.iterdir()) == []
    held = []
    plain = loop.train_step

    def step(*arguments: object) -> object:
        held.append(holder_of(recipe.train.out / RUN_LOCK))
        return plain(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", step)
        train(recipe)
    assert held and all(holder is not None for holder in held)
    assert not (recipe.train.out / RUN_LOCK).exists()


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path: Path) -> None:
    data, bases = toys.photos(tmp_path / "data"), toys.base_models(tmp_path)
    recipe = toys.recipe(tmp_path, data, *bases)
    data.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        train(recipe)
    assert not recipe.train.out.exists()


def test_a_source_is_fetched_once_by_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = wheel()  # once: a zip file holds the time it was made
    commands, failed, sha256 = [], [], hashlib.sha256(made).hexdigest()

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        time.sleep(0.2)
        (Path(command[command.index("--dest") + 1]) / "a-1-any.whl").write_bytes(made)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("MMGEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(subprocess, "run", pip)
    source = dataclasses.replace(download.SOURCES["photos_sklearn"], sha256=sha256)
    monkeypatch.setitem(download.SOURCES, "photos_sklearn", source)

    def fetch() -> None:
        try:
            download.base_folder("photos_sklearn")
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [] and len(commands) == 1
    folder = download.cache_folder("photos_sklearn")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_calibration_is_not_put_into_another_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from mmgem.cli.main import main
    from mmgem.evaluate import calibrate

    model, data = tmp_path / "model", toys.photos(tmp_path / "data")
    save_model(model, toys.network(), toys.tokenizer(), "")

    def fit(*_: object) -> tuple[None, None]:
        save_model(model, toys.network(seed=1), toys.tokenizer(), "")
        return None, None

    monkeypatch.setattr(calibrate, "fit_calibration", fit)
    assert main(["calibrate", str(model), "--data", str(data)]) == 1
    assert "holds another model by now" in capfd.readouterr().err


def test_embeddings_of_a_teacher_are_computed_once_by_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mmgem.tasks.image_text import teacher

    monkeypatch.setenv("MMGEM_CACHE", str(tmp_path / "cache"))
    folder, calls, found = toys.text_teacher(tmp_path / "teacher"), [], []
    plain = teacher.text_teacher

    def slow(*arguments: object, **options: object) -> object:
        calls.append(1)
        time.sleep(0.2)
        return plain(*arguments, **options)

    monkeypatch.setattr(teacher, "text_teacher", slow)

    def embed() -> None:
        found.append(teacher.embed_captions(str(folder), "section", ["a dog", "a cat"]))

    threads = [threading.Thread(target=embed) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1 and len(found) == 3
    assert all(np.array_equal(found[0], other) for other in found)
    assert [path.suffix for path in (tmp_path / "cache" / "teacher").iterdir()] == [".sqlite"]
