"""Groups of photos that look alike: what is grouped, and what the groups are called."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from test_filters import write_index

from mmgem.cli.main import main
from mmgem.data.photo_metadata import PhotoMetadata
from mmgem.errors import ImageError, UsageError
from mmgem.search.clusters import cluster_photos, spherical_kmeans
from mmgem.search.search import PhotoIndex


def around(centres: np.ndarray, each: int) -> np.ndarray:
    rng = np.random.default_rng(1)
    rows = np.repeat(centres, each, 0) + 0.05 * rng.normal(size=(len(centres) * each, centres.shape[1]))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_well_separated_groups_are_found() -> None:
    centres = np.eye(5, 16, dtype=np.float32)
    vectors = around(centres, 20)
    labels, found = spherical_kmeans(vectors, 5)
    assert sorted(np.bincount(labels)) == [20] * 5
    assert all(len(set(labels[n : n + 20])) == 1 for n in range(0, 100, 20))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal((vectors @ found.T).argmax(1), labels)
    np.testing.assert_array_equal(spherical_kmeans(vectors, 5)[0], labels)


def test_there_are_no_more_groups_than_different_photos() -> None:
    vectors = np.repeat(np.eye(2, 4, dtype=np.float32), 3, 0)
    labels, centres = spherical_kmeans(vectors, 5)
    assert len(centres) == 2 and len(set(labels)) == 2


class Namer:
    """Says the folder of a photo; knows where "a", "b", "c" and "bad" are."""

    def caption(self, images: Sequence[object]) -> list[str]:
        if any("bad" in str(image) for image in images):
            raise ImageError("bad")
        return [Path(str(image)).parent.name for image in images]

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([np.eye(16, dtype=np.float32)["abc".index(text)] for text in texts])


def test_names_and_order(tmp_path: Path) -> None:
    vectors = around(np.eye(3, 16, dtype=np.float32), 6)[:15]
    names = [f"{'abc'[n // 6]}/{'bad' if n == 0 else n}.jpg" for n in range(15)]
    write_index(tmp_path / "idx", [(name, PhotoMetadata(4, 3), 0.0) for name in names], vectors)
    index = PhotoIndex.open(tmp_path / "idx")
    clusters = cluster_photos(index, Namer(), 3)
    assert sorted(cluster.name for cluster in clusters) == ["a", "b", "c"]
    assert [len(cluster.paths) for cluster in clusters] == [6, 6, 3] and clusters[2].name == "c"
    for cluster in clusters:
        assert {path.parent.name for path in cluster.paths} == {cluster.name}
    with pytest.raises(UsageError, match="at least 1, not 0"):
        cluster_photos(index, Namer(), 0)


def test_no_two_groups_have_one_name(tmp_path: Path) -> None:
    vectors = around(np.eye(3, 16, dtype=np.float32), 6)
    names = [f"{'aab'[n // 6]}/{n}.jpg" for n in range(18)]
    write_index(tmp_path / "idx", [(name, PhotoMetadata(4, 3), 0.0) for name in names], vectors)
    clusters = cluster_photos(PhotoIndex.open(tmp_path / "idx"), Namer(), 3)
    assert sorted(cluster.name for cluster in clusters) == ["a", "a (2)", "b"]


def test_command(
    tiny_photos: list[Path], tmp_path: Path, tiny_model_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    idx = str(tmp_path / "idx")
    assert main(["index", str(tiny_photos[0].parent), "-o", idx, "-m", str(tiny_model_folder)]) == 0
    capfd.readouterr()
    assert main(["cluster", idx, "-n", "2", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    files = [file for group in told["clusters"] for file in group["files"]]
    assert sorted(files) == sorted(map(str, tiny_photos)) and told["photos"] == len(tiny_photos)
    assert main(["cluster", idx, "-n", "2"]) == 0
    lines = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
    assert lines == [[str(len(group["files"])), group["name"]] for group in told["clusters"]]
    assert main(["cluster", idx, "-n", "2", "--files"]) == 0
    assert [line.split("\t")[1] for line in capfd.readouterr().out.splitlines()] == files
