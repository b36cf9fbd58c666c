"""Processes of tests, forked from one that has done the slow imports; it is started once a session.

A process that fails says on its standard error why, and that is what the test then shows.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch

_IMPORTS = [
    "mmgem.cli.main",
    "mmgem.train.loop",
    "peft",
    "torch.distributed.fsdp",
    "torch.distributed.run",
    *(f"transformers.models.{name}.modeling_{name}" for name in ("clip", "gpt2", "llama")),
]
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(_IMPORTS)


class Forked:
    """A process that calls ``call(*arguments)``, silent but for the file ``said``. ``environment`` is all of
    its environment; None: that of this process."""

    def __init__(
        self,
        said: Path,
        call: Callable[..., Any],
        *arguments: Any,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.said = said
        self.process = _SERVER.Process(
            target=_run, args=(said, dict(environment or os.environ), call, arguments)
        )
        self.process.start()


def _run(said: Path, environment: dict[str, str], call: Callable[..., Any], arguments: Any) -> None:
    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    call(*arguments)


def all_end_well(started: Sequence[Forked], seconds: float = 600) -> None:
    """Wait for the end of all, which has to be a good one; if one fails, none goes on."""
    try:
        end = time.monotonic() + seconds
        while left := [forked for forked in started if forked.process.exitcode is None]:
            assert wait([forked.process.sentinel for forked in left], end - time.monotonic()), "not in time"
            for forked in started:
                said = f"ended with {forked.process.exitcode}: {forked.said.read_text()[-3000:]}"
                assert forked.process.exitcode in (None, 0), said
    finally:
        for forked in started:
            forked.process.kill()
            forked.process.join()


_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
_PORTS = itertools.cycle(range(20_000 + 200 * (_WORKER % 60), 20_200 + 200 * (_WORKER % 60)))
"""One after the other, of this worker alone, and below those that the system gives to whoever asks for any: a
port is taken only a moment after it was found to be free."""


def _is_free(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) != 0


def run_ranks(said: Path, size: int, call: Callable[..., Any], *arguments: Any) -> None:
    """Call ``call(*arguments)`` in ``size`` processes that find each other as torchrun's do; all have to end
    well. Each has one thread."""
    port = next(filter(_is_free, _PORTS))
    shared = os.environ | {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [shared | {"RANK": str(r), "LOCAL_RANK": str(r)} for r in range(size)]
    all_end_well(
        [
            Forked(said.with_name(f"{said.name}-{rank['RANK']}"), call, *arguments, environment=rank)
            for rank in ranks
        ]
    )


def command(argv: Sequence[str]) -> None:
    """``mmgem ARGV`` as a process of its own: it ends with the command's exit code."""
    from mmgem.cli.main import main

    sys.exit(main(argv))
