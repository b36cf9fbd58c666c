"""What is said on standard error while something takes long, and that a program which only uses the library
sees none of it."""

from __future__ import annotations

import ast
import logging
from pathlib import Path

import pytest

import mmgem
from mmgem.cli.main import main
from mmgem.cli.output import log_to_stderr
from mmgem.utils import progress


def test_work_under_way_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with log_to_stderr():
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


def all_meters() -> None:
    with progress.doing("a long thing"):
        pass
    assert list(progress.track([1, 2], "things")) == [1, 2]
    with progress.Meter("training", 2, 0, " pairs") as meter:
        meter.advance(2, 4, {"loss": 1.0})
        meter.note("a [note]")
        meter.say(2, {"score": 3})


@pytest.mark.parametrize("terminal", [False, True])
def test_a_program_sees_progress_only_if_it_asks(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LONG", 0.0)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    all_meters()
    assert capsys.readouterr() == ("", "")
    with log_to_stderr():
        all_meters()
    error = capsys.readouterr().err
    assert all(part in error for part in ("a long thing", "training", "a [note]", "step 2: "))
    assert "mmgem:" not in error and ("things" in error) == terminal


def test_progress_goes_where_a_program_logs(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_LONG", 0.0)
    with caplog.at_level(logging.INFO, "mmgem"):
        all_meters()
    assert caplog.messages[0] == "a long thing: 0 s" and "a [note]" in caplog.messages
    assert {record.name for record in caplog.records} == {"mmgem.progress"}
    assert capsys.readouterr() == ("", "")


def test_commands_show_what_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("mmgem.somewhere")
    with log_to_stderr():
        log.info("a %s", "note\nof two lines")
        log.warning("some 100% thing")
        try:
            raise ValueError("here")
        except ValueError:
            log.exception("it failed")
    first, second, third, *rest = capsys.readouterr().err.splitlines()
    assert (first, second) == ("mmgem: a note of two lines", "mmgem: warning: some 100% thing")
    assert third == "mmgem: error: it failed"
    assert rest[0].startswith("Traceback") and rest[-1] == "ValueError: here"
    assert main(["--version"]) == 0
    log.info("not shown")
    assert capsys.readouterr().err == "" and logging.getLogger("mmgem").propagate


def test_the_library_logs_and_does_not_print() -> None:
    root = Path(mmgem.__file__).parent
    printing = []
    for path in sorted(root.rglob("*.py")):
        room = path.relative_to(root).parts[0]
        if room == "cli" or path.name == "describe.py":  # a script as well, which writes docs/recipes.md
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node)
                if called.startswith("print(") or (
                    called.startswith("warnings.warn(") and "DeprecationWarning" not in called
                ):
                    printing.append(f"{path.relative_to(root)}:{node.lineno}: {called}")
    assert not printing


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def test_a_line_every_half_minute_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    with log_to_stderr():
        for _ in progress.track(range(10), "Indexing", unit=" photos"):
            clock.now += 20
        assert list(progress.track(range(3), "short")) == [0, 1, 2]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5 and lines[0] == "Indexing 2/10 | 0.1 photos/s | left 0:02:40"
    assert lines[-1] == "Indexing 10/10 | 0.1 photos/s | left 0:00:00"


def test_the_first_step_is_no_rate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    with log_to_stderr(), progress.Meter("training", 4, 0, " pairs") as meter:
        for seconds in (600, 2, 31):
            clock.now += seconds
            meter.advance(1, 8, {"loss": 1.23456})
        meter.say(3, {"score": 56.789123, "best": 3})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "training 1/4 | - pairs/s | left - | loss 1.235"
    assert lines[1] == "training 3/4 | 0.5 pairs/s | left 0:00:16 | loss 1.235"
    assert lines[2] == "step 3: score 56.79 best 3"
