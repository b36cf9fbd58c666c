"""The text teacher's rows are kept on disk, one a text."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import toys

from mmgem.models import sentence_encoder, text_tower
from mmgem.tasks.image_text import teacher


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMGEM_CACHE", str(tmp_path / "cache"))
    return toys.text_teacher(tmp_path / "teacher")


def test_a_text_is_read_once_whatever_comes_with_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    make = sentence_encoder.sentence_encoder

    def counted(*args: object, **options: object) -> object:
        encode = make(*args, **options)  # type: ignore[arg-type]
        return lambda texts: (read.extend(texts), encode(texts))[1]

    monkeypatch.setattr(text_tower, "sentence_encoder", counted)
    first = teacher.embed_captions(str(folder), "s", ["a dog", "a cat", "a dog"])
    assert sorted(read) == ["a cat", "a dog"]
    read.clear()
    second = teacher.embed_captions(str(folder), "s", ["a bird on a tree", "a cat", "a dog"])
    assert read == ["a bird on a tree"]
    np.testing.assert_array_equal(first, second[[2, 1, 2]])
    np.testing.assert_allclose(second, make(folder)(["a bird on a tree", "a cat", "a dog"]), atol=1e-6)
    read.clear()
    np.testing.assert_array_equal(
        teacher.embed_captions(str(folder), "s", ["a cat", "a bird on a tree"]), second[[1, 0]]
    )
    assert read == []


def test_another_teacher_in_the_same_folder_is_another(folder: Path) -> None:
    before = teacher.embed_captions(str(folder), "s", ["a dog"])
    os.utime(folder / "config.json", ns=(1, 1))
    np.testing.assert_allclose(before, teacher.embed_captions(str(folder), "s", ["a dog"]), atol=1e-6)
    assert len([*(folder.parent / "cache" / "teacher").iterdir()]) == 2
