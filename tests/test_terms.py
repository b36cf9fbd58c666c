"""The terms of a model's weights: said at a terminal, once a model, and never to programs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mmgem.cli import terms
from mmgem.cli.main import main

CARD = "---\nlibrary_name: mmgem\nlicense: other\nlicense_name: 'toys-only'\n---\n# Toys\nlicense: mit\n"


@pytest.fixture
def licensed(tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(shutil.copytree(tiny_model_folder, tmp_path / "toy"))
    (folder / "README.md").write_text(CARD)
    monkeypatch.setenv("MMGEM_CACHE", str(tmp_path / "cache"))
    return folder


def at_terminal(monkeypatch: pytest.MonkeyPatch, out: bool = True, err: bool = True) -> None:
    monkeypatch.setattr(terms.sys.stdout, "isatty", lambda: out, raising=False)
    monkeypatch.setattr(terms.sys.stderr, "isatty", lambda: err, raising=False)


def embed(folder: Path, photo: Path, *more: str) -> list[str]:
    return ["embed", str(photo), "--out", str(folder.parent / "a.npy"), "-m", str(folder), *more]


def test_a_card_names_its_licence():
    assert terms.card_licence(CARD) == "toys-only"
    assert terms.card_licence("---\nlicense: apache-2.0\n---\n") == "apache-2.0"
    assert terms.card_licence("# A model\nlicense: mit\n") is None
    assert terms.card_licence("---\nlanguage: en\n---\nlicense: mit\n") is None
    assert terms.card_licence("") is None


def test_terms_are_said_once(licensed, tiny_photos, monkeypatch, capfd):
    at_terminal(monkeypatch)
    assert main(embed(licensed, tiny_photos[0])) == 0
    line = f"mmgem: the weights of toy are under toys-only; see {licensed / 'README.md'}"
    assert capfd.readouterr().err.splitlines().count(line) == 1
    assert main(embed(licensed, tiny_photos[0])) == 0
    assert "toys-only" not in capfd.readouterr().err
    (licensed / "README.md").write_text(CARD.replace("toys-only", "other-toys"))
    assert main(embed(licensed, tiny_photos[0])) == 0
    assert "under other-toys" in capfd.readouterr().err


def test_terms_are_not_said_to_programs(licensed, tiny_photos, monkeypatch, capfd):
    for out, err, more in ((False, True, ()), (True, False, ()), (True, True, ("--json",))):
        at_terminal(monkeypatch, out, err)
        assert main(embed(licensed, tiny_photos[0], *more)) == 0
        assert "toys-only" not in capfd.readouterr().err
    assert not (licensed.parent / "cache" / "terms").exists()


def test_a_cache_that_cannot_be_written_is_no_error(licensed, tiny_photos, monkeypatch, capfd):
    (licensed.parent / "cache").write_text("a file")
    at_terminal(monkeypatch)
    assert main(embed(licensed, tiny_photos[0])) == 0
    assert "under toys-only" in capfd.readouterr().err
