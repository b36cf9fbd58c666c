"""Damage is seen in models, checkpoints, corpora, shards and what bulk wrote; ``mmgem check`` says so."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from damage import TORN, flip_bits
from logs import logged
from test_damage import copied, zeros
from test_hnsw import add, units

from mmgem.bulk.collection import Partition, Span
from mmgem.bulk.output import OutputFolder, PhotoRow, read_column, schema
from mmgem.checkpoints.model_folder import load_model, save_model
from mmgem.checkpoints.resolve import PACKAGED
from mmgem.checkpoints.tensors import load_tensors
from mmgem.cli.main import main
from mmgem.data.readers import load_dataset
from mmgem.data.shards import find_shards, open_shard, pack
from mmgem.errors import CheckpointError, DataError, MMGEMError
from mmgem.inference.calibration import Background, MatchCalibration, MatchWeights
from mmgem.self_retrieval.corpus import Corpus
from mmgem.self_retrieval.prompts import Prompts
from mmgem.train.state import Snapshot, save_state
from mmgem.utils.checksums import folder_problems, read_checksums

SEEDS = range(12)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMGEM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(folder, toys.network("tied llama", "none"), toys.tokenizer(), "a card")
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "corpus"
    made = Corpus.build(toys.passages(9), Prompts(toys.tokenizer()))
    made.vectors = units(9)
    made.save(folder)
    return folder


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    weights = {"a": torch.randn(64, 8), "b": torch.ones(3)}
    for number in (1, 2):
        save_state(folder, number, Snapshot(weights, weights, weights), {"recipe": {}}, 2)
    return folder / "step-00000002"


@pytest.fixture(scope="module")
def bulk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("pyarrow")
    out = tmp_path_factory.mktemp("bulk") / "out"
    output, vectors = OutputFolder(out), units(40)
    partition = Partition(0, 0, [Span(f"{n}.jpg") for n in range(40)])
    with (
        output.locked({"model": "m", "photos": 40, "part_size": 40}),
        output.temporary_file(partition) as file,
    ):
        rows = [PhotoRow(n, f"{n}.jpg", None, bytes(16), 9, 9, vector) for n, vector in enumerate(vectors)]
        output.write(partition, file, rows, [], schema(vectors.shape[1], False))
    return out


@pytest.fixture(scope="module", params=["tar", "parquet"])
def shards(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    folder = tmp_path_factory.mktemp(request.param)
    pack(load_dataset(toys.photos(folder / "data", 5, 0)), folder / "shards", request.param, per_shard=3)
    return folder / "shards"


def files(folder: Path) -> list[Path]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".md")
    return [path.relative_to(folder) for path in paths]


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, dict[str, Any]]:
    code = main(["check", *map(str, argv), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_flipped_bits_of_a_model_are_seen(model: Path, tmp_path: Path) -> None:
    assert Path("checksums.json") in files(model)
    for name in files(model):
        for seed in SEEDS if name.suffix == ".safetensors" else range(3):
            folder = copied(model, tmp_path / "copy")
            flip_bits(folder / name, seed)
            if name.suffix == ".safetensors":
                with pytest.raises(
                    CheckpointError, match=r"model.safetensors: damaged; .*its checksum does not"
                ):
                    load_model(folder)
                continue
            with logged() as records:  # people edit these, so they are read, if they can be
                try:
                    load_model(folder)
                except MMGEMError:
                    continue
            assert any("edited or damaged" in record.getMessage() for record in records), name


def test_a_model_that_nothing_has_happened_to_is_loaded_in_silence(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copied(model, tmp_path / "copy")
    (folder / "README.md").write_text("my own words")
    with caplog.at_level(logging.WARNING):
        load_model(folder)
        (folder / "checksums.json").unlink()
        load_model(folder)
    assert not caplog.records


def test_the_model_in_the_package_is_as_it_was_written() -> None:
    assert folder_problems(PACKAGED / "tiny") == []
    assert "model.safetensors" in (read_checksums(PACKAGED / "tiny") or {})


@pytest.mark.parametrize("tear", TORN)
def test_torn_weights_are_seen(model: Path, tmp_path: Path, tear: Callable[[Path], None]) -> None:
    folder = copied(model, tmp_path / "copy")
    tear(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.safetensors: damaged; .* bytes instead of"):
        load_model(folder)


def test_flipped_bits_of_a_checkpoint_are_seen(step: Path, tmp_path: Path) -> None:
    for name in files(step):
        for seed in SEEDS:
            folder = copied(step, tmp_path / "copy")
            flip_bits(folder / name, seed)
            if name.suffix == ".safetensors":
                with pytest.raises(CheckpointError, match=r"damaged; copy or make .*checksum"):
                    load_tensors(folder / name)


def test_flipped_bits_of_a_corpus_are_seen(corpus: Path, tmp_path: Path) -> None:
    expected = Corpus.open(corpus)
    for name in files(corpus):
        for seed in range(4):
            folder = copied(corpus, tmp_path / "copy")
            flip_bits(folder / name, seed)
            try:
                found = Corpus.open(folder)
            except CheckpointError as error:
                assert "damaged" in str(error)
            else:  # the list of checksums itself: what it lists is whole
                assert name.name == "checksums.json"
                assert found.passages == expected.passages
                np.testing.assert_array_equal(found.vectors, expected.vectors)


def test_impossible_vectors_of_a_corpus(corpus: Path, tmp_path: Path) -> None:
    folder = copied(corpus, tmp_path / "copy")
    found = Corpus.open(folder)
    assert found.vectors is not None
    zeros(found.vectors[3:4])
    with pytest.raises(DataError, match=r"the embedding of passage .* is not finite and of unit length"):
        found.save(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (folder / "checksums.json").unlink()  # as an earlier version wrote it
    np.save(folder / "vectors.npy", found.vectors)
    with pytest.raises(CheckpointError, match=r"vectors.npy: damaged, 1 rows .*, the first is 3"):
        Corpus.open(folder)


def test_flipped_bits_of_bulk_output_are_seen(bulk: Path, tmp_path: Path) -> None:
    for seed in SEEDS:
        out = copied(bulk, tmp_path / "copy")
        flip_bits(out / "parts" / "000000.parquet", seed)
        for column in ("digest", "embedding"):
            with pytest.raises(
                DataError, match=r"000000.parquet: damaged .*remove it and run mmgem bulk again"
            ):
                read_column(out / "parts" / "000000.parquet", column)
    for tear in TORN:
        out = copied(bulk, tmp_path / "copy")
        tear(out / "parts" / "000000.parquet")
        with pytest.raises(DataError, match="damaged"):
            read_column(out / "parts" / "000000.parquet", "digest")
    out = copied(bulk, tmp_path / "copy")
    shutil.rmtree(out / "checksums")
    assert len(read_column(out / "parts" / "000000.parquet", "digest")) == 40


def test_impossible_vectors_are_no_part(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    output, vectors = OutputFolder(tmp_path / "out"), units(2)
    vectors[1, 0] = np.nan
    partition = Partition(0, 0, [Span("0.jpg"), Span("1.jpg")])
    rows = [PhotoRow(n, f"{n}.jpg", None, bytes(16), 9, 9, vector) for n, vector in enumerate(vectors)]
    with (
        output.locked({"model": "m"}),
        output.temporary_file(partition) as file,
        pytest.raises(DataError, match=r"the embedding of 1.jpg is not finite"),
    ):
        output.write(partition, file, rows, [], schema(vectors.shape[1], False))
    assert output.partition_files() == []


def samples(folder: Path) -> list[Any]:
    read = []
    for path in find_shards(folder):
        shard = open_shard(path)
        if shard.problems:
            raise DataError(shard.problems[0])
        read += [
            (sample.key, sample.photo, sample.record.captions)
            for sample in map(shard.read, range(len(shard)))
        ]
    return read


def test_flipped_bits_of_shards_are_seen(shards: Path, tmp_path: Path) -> None:
    expected = samples(shards)
    silent = 0
    for seed in range(30):
        folder = copied(shards, tmp_path / f"copy{seed}")
        path = find_shards(folder)[0]
        flip_bits(path, seed)
        try:
            assert samples(folder) == expected
            silent += 1
        except DataError:
            pass
    assert silent <= 3  # the padding of a tar is read by nobody


def test_flipped_bits_of_a_calibration_are_seen(tmp_path: Path) -> None:
    weights = MatchWeights(*(0.5 for _ in MatchWeights.__dataclass_fields__))
    background = Background(units(1)[0], np.eye(32, 4, dtype=np.float32), 0.1)
    MatchCalibration(background, weights, weights).save(tmp_path)
    (path,) = tmp_path.iterdir()
    kept = path.read_bytes()
    for seed in range(40):
        path.write_bytes(kept)
        flip_bits(path, seed)
        with pytest.raises(CheckpointError):
            MatchCalibration.load(tmp_path, 32)


def test_check_reads_everything(
    model: Path, corpus: Path, step: Path, bulk: Path, shards: Path, tmp_path: Path, capsys: Any
) -> None:
    add(tmp_path / "idx", units(90), boxes=2)
    for seed, (what, kind, damaged, remedy) in enumerate(
        (
            (tmp_path / "idx", "index", "vectors-0.f32", "--repair"),
            (tmp_path / "idx", "index", "photos.sqlite3", "run mmgem index again"),
            (model, "model", "model.safetensors", "copy the folder again"),
            (model, "model", "tokenizer.json", "copy the folder again"),
            (corpus, "corpus", "rows/tokens.npy", "train it again"),
            (corpus, "corpus", "passages.jsonl", "train it again"),
            (step, "checkpoint", "optimizer.safetensors", "go on from the one before"),
            (
                step.parent.parent,
                "training run",
                "checkpoints/step-00000001/state.json",
                "from the one before",
            ),
            (bulk, "bulk output", "parts/000000.parquet", "run mmgem bulk again"),
            (shards, "shards", find_shards(shards)[0].name, "run mmgem data pack again"),
        )
    ):
        code, found = run(capsys, what)
        assert (code, found["kind"], found["ok"], found["problems"], found["notes"]) == (
            0,
            kind,
            True,
            [],
            [],
        )
        assert all(found["counts"].values())
        copy = copied(what, tmp_path / "copy")
        flip_bits(copy / damaged, seed)
        code, found = run(capsys, copy)
        assert (code, found["ok"]) == (1, False), damaged
        assert any(str(copy / damaged) == problem["file"] for problem in found["problems"]), found
        assert all(problem["remedy"] for problem in found["problems"])
        assert any(remedy in problem["remedy"] for problem in found["problems"]), found


def test_check_says_what_has_no_checksums(model: Path, bulk: Path, tmp_path: Path, capsys: Any) -> None:
    folder = copied(model, tmp_path / "copy")
    (folder / "checksums.json").unlink()
    code, found = run(capsys, folder)
    assert (code, found["problems"]) == (0, [])
    assert "has no checksums, an earlier version wrote it" in found["notes"][0]
    shutil.rmtree((out := copied(bulk, tmp_path / "copy")) / "checksums")
    assert "1 of 1 parts have no checksums" in run(capsys, out)[1]["notes"][0]


def test_check_as_lines(tmp_path: Path, capsys: Any) -> None:
    add(tmp_path / "idx", units(90), boxes=2)
    assert main(["check", str(tmp_path / "idx")]) == 0
    assert capsys.readouterr().out == f"ok: index {tmp_path / 'idx'}: 30 photos, 90 vectors\n"
    flip_bits(tmp_path / "idx" / "vectors-0.f32", 0, start=0, stop=100)
    assert main(["check", str(tmp_path / "idx")]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(
        f"{tmp_path / 'idx' / 'vectors-0.f32'}: rows 0-31: checksum does not match (11 photos: 00000"
    )
    assert line.endswith(f"; run mmgem index {tmp_path / 'idx'} --out {tmp_path / 'idx'} --repair")
    assert main(["check", str(tmp_path)]) == 2
    assert "no index, model, training run" in capsys.readouterr().err


def test_a_packed_photo_that_changed_is_packed_again(tmp_path: Path) -> None:
    data = toys.photos(tmp_path / "data", 4, 0)
    first = pack(load_dataset(data), tmp_path / "shards", per_shard=2)
    assert pack(load_dataset(data), tmp_path / "shards", per_shard=2).kept == 2
    photo = load_dataset(data)[3].image
    other = load_dataset(data)[0].image.read_bytes()
    size = max(len(other), photo.stat().st_size)
    photo.write_bytes(photo.read_bytes().ljust(size, b"\0"))
    shutil.rmtree(tmp_path / "shards")
    first = pack(load_dataset(data), tmp_path / "shards", per_shard=2)
    photo.write_bytes(other.ljust(size, b"\0"))
    again = pack(load_dataset(data), tmp_path / "shards", per_shard=2)
    assert (again.kept, again.shards) == (1, first.shards)
    assert open_shard(again.shards[1]).read(1).photo == photo.read_bytes()
