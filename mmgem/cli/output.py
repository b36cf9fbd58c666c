"""Results on standard output, everything else on standard error."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from mmgem.errors import UsageError

_json: ContextVar[bool] = ContextVar("json", default=False)


def _remember(wanted: bool) -> bool:
    _json.set(wanted)
    return wanted


JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object instead.", callback=_remember)
]


def json_wanted() -> bool:
    """Whether the command was given ``--json``: then nobody reads along."""
    return _json.get()


_LISTED = 20
_HALF = re.compile("[\ud800-\udfff]")


def note(text: str) -> None:
    """Tell the user something that is not a result."""
    print(f"mmgem: {text}", file=sys.stderr)


def counted(number: int, thing: str, things: str = "") -> str:
    """``1 part``, ``2 parts``, ``1,204 photos``; ``things`` if it is not an s that makes them many."""
    return f"{number:,} {thing if number == 1 else things or f'{thing}s'}"


class _Lines(logging.Handler):
    """What the library logs, as lines on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Progress as it is; all else as a note, which says so if it is a warning or an error."""
        try:
            text = record.getMessage()
            if record.name == "mmgem.progress":
                print(text, file=sys.stderr)
                return
            text = " ".join(text.split())
            level = record.levelname.lower()
            note(text if record.levelno < logging.WARNING else f"{level}: {text}")
            if record.exc_info:
                import traceback

                traceback.print_exception(*record.exc_info, file=sys.stderr)
        except Exception:
            self.handleError(record)


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """Show what the library logs, and its progress bars, on standard error."""
    log, handler = logging.getLogger("mmgem"), _Lines()
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


def exit_now() -> NoReturn:
    """End the process at once and well, whatever its threads still do; results are shown first."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def prepare_output_file(file: Path, *suffixes: str) -> None:
    """Make the folder of a file that is to be written; before the work, so that none is lost. Raises
    ``UsageError`` if it cannot be, or ``file`` is a folder or has none of the ``suffixes``: a photo given by
    mistake is not overwritten."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{file.parent} is a file" if file.parent.is_file() else error.strerror
        raise UsageError(f"{file}: its folder cannot be made: {reason}") from error
    if file.is_dir():
        raise UsageError(f"{file}: is a folder, not a file to write")
    if file.suffix.lower() not in suffixes:
        raise UsageError(f"{file}: must end in {' or '.join(suffixes)}")


def print_json(value: dict[str, Any]) -> None:
    """Print a JSON object on a line. Names of files that are no text have their bytes as ``\\xe9``: half a
    character, as Python holds them, is what many parsers refuse."""
    import json

    text = json.dumps(value, ensure_ascii=False)
    print(json.dumps(json.loads(_HALF.sub(_escaped, text)) if _HALF.search(text) else value))


def _escaped(half: re.Match[str]) -> str:
    number = ord(half[0])
    return f"\\\\x{number - 0xDC00:02x}" if 0xDC80 <= number <= 0xDCFF else f"\\\\u{number:04x}"


def line_printer() -> Callable[[str], None]:
    """A function that prints a line of results at once, also while a progress bar is shown.

    A bar takes over ``sys.stdout`` to keep a terminal tidy; lines for a file or a pipe must go past it.
    """
    stream = sys.stdout

    def show(text: str) -> None:
        print(text, file=sys.stdout if stream.isatty() else stream, flush=True)

    return show


def note_skipped(problems: Sequence[str]) -> None:
    """List photos that were skipped, the first of them if they are many."""
    for problem in problems[:_LISTED]:
        note(f"skipped {problem}")
    if len(problems) > _LISTED:
        note(f"skipped {len(problems) - _LISTED} more; --json lists all")
