"""Training log: ``log.jsonl`` always, and the trackers a recipe names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmgem.utils.files import sync_file, write_atomic


class MetricsLogger:
    """Appends one JSON object a line; a resumed run first drops the lines it will write again."""

    def __init__(self, folder: Path, step: int, trackers: Sequence[str] = ()):
        self.path = folder / "log.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            lines = [line for line in self.path.read_text().splitlines() if _step(line) <= step]
            write_atomic(self.path, "".join(f"{line}\n" for line in lines))
        self.tensorboard: Any = None
        self.runs: list[Any] = []
        for name in trackers:
            if name == "tensorboard":
                from torch.utils.tensorboard import SummaryWriter

                self.tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=step)
            else:
                import importlib

                tracker = importlib.import_module(name)
                self.runs.append(tracker.init(project="mmgem", name=folder.name, resume="allow"))

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Append ``values`` of ``step``; numbers also go to the trackers."""
        with self.path.open("a") as f:
            f.write(json.dumps({"step": step, **values}) + "\n")
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        for run in self.runs:
            run.log(numbers, step=step)
        if self.tensorboard is not None:
            for name, value in numbers.items():
                self.tensorboard.add_scalar(name, value, step)

    def sync(self) -> None:
        """Wait until all that was written is on the disk: before a checkpoint says that it was."""
        if self.path.exists():
            sync_file(self.path)

    def close(self) -> None:
        """End the run in the trackers, with all that was written."""
        for run in self.runs:
            run.finish()
        if self.tensorboard is not None:
            self.tensorboard.close()


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError):
        return float("inf")
