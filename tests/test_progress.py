"""What is said on standard error while something takes long."""

from __future__ import annotations

import pytest

from mmgem.utils import progress


def test_work_under_way_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with progress.doing("a short thing"):
        pass
    monkeypatch.setattr(progress, "_LONG", 0.0)
    with progress.doing("a [long] thing"):
        pass
    out, error = capsys.readouterr()
    assert (out, error) == ("", "a [long] thing: 0 s\n")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    with progress.doing("a [long] thing"):
        pass
    error = capsys.readouterr().err
    assert "a [long] thing" in error and "0 s" not in error
