"""Hostile and damaged model folders: one clear line each, quickly, with nothing run and nothing fetched."""

from __future__ import annotations

import shutil
from pathlib import Path

import hostile
import numpy as np
import pytest

from mmgem import MMGEM
from mmgem.errors import CheckpointError
from mmgem.utils.checksums import CHECKSUMS_FILE

TEXTS = ["a dog", "the cat sits on the red ball"]
SEEDS = range(60)


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))
    (copy / CHECKSUMS_FILE).unlink()  # else all that is changed is "damaged"
    return copy


@pytest.fixture(scope="module")
def expected(tiny_model_folder: Path) -> np.ndarray:
    return MMGEM.from_pretrained(tiny_model_folder).embed_texts(TEXTS)


@pytest.mark.parametrize("name", hostile.HOSTILE)
def test_one_line_that_names_the_fault(name: str, folder: Path, expected: np.ndarray) -> None:
    damage, line = hostile.HOSTILE[name]
    damage(folder)
    with hostile.guarded(folder.parent / "canary"), pytest.raises(CheckpointError, match=line) as caught:
        MMGEM.from_pretrained(folder)
    message = str(caught.value)
    assert str(folder) in message and "\n" not in message and len(message) < 700


@pytest.mark.parametrize("name", hostile.IGNORED)
def test_code_in_a_folder_is_not_run(name: str, folder: Path, expected: np.ndarray) -> None:
    hostile.IGNORED[name](folder)
    with hostile.guarded(folder.parent / "canary"):
        vectors = MMGEM.from_pretrained(folder).embed_texts(TEXTS)
    assert np.array_equal(vectors, expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_mutations_are_refused_or_harmless(seed: int, folder: Path, expected: np.ndarray) -> None:
    hostile.mutate(folder, seed)
    with hostile.guarded(folder.parent / "canary"):
        try:
            vectors = MMGEM.from_pretrained(folder).embed_texts(["a"])
        except CheckpointError as error:
            assert str(folder) in str(error) and "\n" not in str(error)
        else:
            assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
