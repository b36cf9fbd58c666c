"""Training checkpoints: everything an exact resume needs, in safetensors and JSON, written atomically.

``checkpoints/step-N/`` holds the trained weights, the optimiser's moments, the averaged weights and
``state.json``. Batches and dropout are functions of (seed, step), so no random state has to be kept. Tensors
are full, however many processes hold shards of them: a run may go on with another number. They are
copied at the step they belong to and written beside the steps that follow.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from mmgem.checkpoints.tensors import load_tensors, save_tensors
from mmgem.config import Recipe, from_dict, to_dict
from mmgem.config.checks import free_on_resume
from mmgem.config.compare import difference
from mmgem.config.legacy import current_recipe, current_tensor, current_tensors
from mmgem.distributed.world import SINGLE_PROCESS, World, distribute_like, gather_full_tensors, local_tensor
from mmgem.errors import CheckpointError, ConfigError
from mmgem.models.network import MMGEMNetwork
from mmgem.train.optim import ExponentialMovingAverage
from mmgem.utils.checksums import verify_file, write_checksums
from mmgem.utils.files import NEW, OLD, remove_folder, write_atomic, write_folder


@dataclass
class Snapshot:
    """Copies of a run's tensors by name, in the CPU's memory."""

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    average: dict[str, Tensor] | None


def take_snapshot(
    network: MMGEMNetwork,
    optimizer: torch.optim.Optimizer,
    average: ExponentialMovingAverage | None,
    world: World = SINGLE_PROCESS,
) -> Snapshot | None:
    """Copy what trains; None but on the main process. Every process has to call it."""
    trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
    weights = gather_full_tensors(trained, world)
    held = {f"{n}|{part}": v for n, p in trained.items() for part, v in optimizer.state[p].items()}
    moments = gather_full_tensors(held, world)
    averaged = gather_full_tensors(average.values, world) if average is not None else None
    return Snapshot(weights, moments, averaged) if world.is_main_process else None


def save_state(folder: Path, step: int, taken: Snapshot, facts: dict[str, Any], keep: int) -> None:
    """Write ``folder/step-N`` (N = steps done) and delete all but the newest ``keep``."""

    def fill(new: Path) -> None:
        save_tensors(new / "weights.safetensors", taken.weights)
        save_tensors(new / "optimizer.safetensors", taken.moments)
        if taken.average is not None:
            save_tensors(new / "average.safetensors", taken.average)
        write_atomic(new / "state.json", json.dumps({"step": step, **facts}))
        write_checksums(new)

    write_folder(folder / f"step-{step:08d}", fill)
    for old in saved_steps(folder)[:-keep]:
        remove_folder(folder / f"step-{old:08d}")
    for leftover in (*folder.glob(f"step-*{NEW}"), *folder.glob(f"step-*{OLD}")):  # of killed runs
        shutil.rmtree(leftover)


class CheckpointWriter:
    """Writes checkpoints beside the training, one at a time; leaving it waits for the last one."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.thread: Thread | None = None
        self.failure: BaseException | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._finish(quietly=kind is not None)

    def save(self, step: int, take: Callable[[], Snapshot | None], facts: dict[str, Any], keep: int) -> None:
        """Begin to write what ``take`` returns, if that is anything, when the one before is written: there is
        never more than one copy in memory. Raises what went wrong with the one before."""
        self._finish()
        taken = take()
        if taken is None:
            return

        def run() -> None:
            try:
                save_state(self.folder, step, taken, facts, keep)
            except BaseException as error:
                self.failure = error

        self.thread = Thread(target=run, name="checkpoint")
        self.thread.start()

    def _finish(self, quietly: bool = False) -> None:
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        failure, self.failure = self.failure, None
        if failure is not None and not quietly:
            raise failure


def saved_steps(folder: Path) -> list[int]:
    """Steps with a complete checkpoint in ``folder``, ascending."""
    names = (re.fullmatch(r"step-(\d{8})", p.name) for p in folder.glob("step-*"))
    return sorted(int(m[1]) for m in names if m)


def load_state(
    folder: Path,
    network: MMGEMNetwork,
    optimizer: torch.optim.Optimizer,
    average: ExponentialMovingAverage | None,
    recipe: Recipe,
    world: World = SINGLE_PROCESS,
) -> dict[str, Any] | None:
    """Restore the newest checkpoint of ``folder``, as the main process sees it, in place and return its
    ``state.json``; None if there is none. Every process has to call it.

    One that an earlier version wrote goes on under today's names. Raises ``ConfigError`` if it was written by
    another recipe, ``CheckpointError`` if this process does not see it
    or it does not fit the model."""
    steps = world.broadcast(saved_steps(folder)[-1:])
    if not steps:
        return None
    newest = folder / f"step-{steps[0]:08d}"
    if not newest.is_dir():
        raise CheckpointError(f"{newest}: not on this machine; all have to share train.out")
    remedy = f"remove {newest} to go on from before"
    verify_file(newest / "state.json", remedy)
    try:
        state: dict[str, Any] = json.loads((newest / "state.json").read_text())
        plain = state["recipe"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{newest / 'state.json'}: damaged; remove {newest} to go on from before"
        ) from error
    try:
        written = from_dict(Recipe, current_recipe(plain)[0])
    except ConfigError as error:
        raise CheckpointError(f"{newest / 'state.json'}: of another version of mmgem: {error}") from error
    free = tuple(f"{name}." for name in free_on_resume(recipe))
    changed = [n for n in difference(to_dict(written), to_dict(recipe)) if not f"{n}.".startswith(free)]
    if changed:
        raise ConfigError(
            f"{changed[0]}: changed since {newest} was written; set it back, or train into another train.out"
        )
    own = {n: p for n, p in network.named_parameters() if p.requires_grad}
    _fill(current_tensors(load_tensors(newest / "weights.safetensors", remedy)), own, newest)
    moments = load_tensors(newest / "optimizer.safetensors", remedy)
    for key, value in moments.items():
        old, _, part = key.rpartition("|")
        name = current_tensor(old)
        optimizer.state[own[name]][part] = distribute_like(value, own[name])
    if average is not None:
        averaged = load_tensors(newest / "average.safetensors", remedy)
        _fill(current_tensors(averaged), average.values, newest)
    return state


@torch.no_grad()
def _fill(source: dict[str, Tensor], target: dict[str, Any], where: Path) -> None:
    if source.keys() != target.keys():
        odd = sorted(source.keys() ^ target.keys())
        raise CheckpointError(f"{where}: does not fit the model: {', '.join(odd[:5])}")
    for name, value in source.items():
        local_tensor(target[name]).copy_(local_tensor(distribute_like(value, target[name])))
