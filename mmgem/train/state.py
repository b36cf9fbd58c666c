"""Training checkpoints: everything an exact resume needs, in safetensors and JSON, written atomically.

``checkpoints/step-N/`` holds the trained weights, the optimiser's moments, the averaged weights and
``state.json``. Batches and dropout are functions of (seed, step), so no random state has to be kept.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmgem.errors import CheckpointError, ConfigError
from mmgem.files import write_atomic, write_folder
from mmgem.models.network import MMGEMNetwork
from mmgem.models.storage import load_tensors, save_tensors
from mmgem.train.optim import Average


def save_state(
    folder: Path,
    step: int,
    network: MMGEMNetwork,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    facts: dict[str, Any],
    keep: int,
) -> None:
    """Write ``folder/step-N`` (N = steps done) and delete all but the newest ``keep``."""
    trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
    moments = {}
    for name, p in trained.items():
        for part, value in optimizer.state[p].items():
            moments[f"{name}|{part}"] = value

    def fill(new: Path) -> None:
        save_tensors(new / "weights.safetensors", dict(trained))
        save_tensors(new / "optimizer.safetensors", moments)
        if average is not None:
            save_tensors(new / "average.safetensors", average.values)
        write_atomic(new / "state.json", json.dumps({"step": step, **facts}))

    write_folder(folder / f"step-{step:08d}", fill)
    for old in saved_steps(folder)[:-keep]:
        shutil.rmtree(folder / f"step-{old:08d}")


def saved_steps(folder: Path) -> list[int]:
    """Steps with a complete checkpoint in ``folder``, ascending."""
    names = (re.fullmatch(r"step-(\d{8})", p.name) for p in folder.glob("step-*"))
    return sorted(int(m[1]) for m in names if m)


def load_state(
    folder: Path,
    network: MMGEMNetwork,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    recipe: dict[str, Any],
) -> dict[str, Any] | None:
    """Restore the newest checkpoint of ``folder`` in place and return its ``state.json``; None if there is
    none. Raises ``ConfigError`` if it was written by another recipe."""
    steps = saved_steps(folder)
    if not steps:
        return None
    newest = folder / f"step-{steps[-1]:08d}"
    state: dict[str, Any] = json.loads((newest / "state.json").read_text())
    changed = difference(state["recipe"], recipe)
    if changed:
        raise ConfigError(
            f"{changed[0]}: changed since {newest} was written; set it back, or train into another train.out"
        )
    own = {n: p for n, p in network.named_parameters() if p.requires_grad}
    _copy(load_tensors(newest / "weights.safetensors"), own, newest)
    moments = load_tensors(newest / "optimizer.safetensors")
    for key, value in moments.items():
        name, _, part = key.rpartition("|")
        optimizer.state[own[name]][part] = value
    if average is not None:
        _copy(load_tensors(newest / "average.safetensors"), average.values, newest)
    return state


def difference(old: Any, new: Any, where: str = "") -> list[str]:
    """Names of the fields in which two plain config dicts differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        return [f for n in names for f in difference(old.get(n), new.get(n), f"{where}.{n}" if where else n)]
    return [] if old == new else [where]


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Any], where: Path) -> None:
    if source.keys() != target.keys():
        odd = sorted(source.keys() ^ target.keys())
        raise CheckpointError(f"{where}: does not fit the model: {', '.join(odd[:5])}")
    for name, value in source.items():
        target[name].copy_(value)
