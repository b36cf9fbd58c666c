"""One recipe of a comparison, trained in a process of its own, so that its memory is its own.

python -m mmgem.compare.worker FOLDER      the recipe is FOLDER/recipe.json
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmgem.config import Recipe, from_dict, to_dict
from mmgem.config.checks import free_on_resume
from mmgem.config.compare import difference
from mmgem.errors import CheckpointError, MMGEMError
from mmgem.utils.files import write_atomic

_FEW = 16  # photos
RECIPE_FILE, DONE_FILE = "recipe.json", "done.json"


def train_apart(recipe: Recipe) -> None:
    """Train ``recipe`` in another process; what it prints passes through. Raises what went wrong there."""
    folder = recipe.train.out
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / RECIPE_FILE, json.dumps(to_dict(recipe)))
    command = [sys.executable, "-m", "mmgem.compare.worker", str(folder)]
    code = subprocess.run(command, check=False).returncode
    if code in (-2, 130):
        raise KeyboardInterrupt
    if code:
        raise CheckpointError(f"{folder}: its training ended with exit code {code}; what it said is above")


def train_here(recipe: Recipe) -> None:
    """Train ``recipe`` in this process, and note what it took: ``done.json`` in its folder. All of its dev
    set is measured afterwards, so one evaluation, which is at the end, sees little of it."""
    from mmgem.train.loop import train

    started = time.monotonic()
    only_last = not recipe.train.evaluate_every
    train(replace(recipe, train=replace(recipe.train, evaluate_images=_FEW)) if only_last else recipe)
    cost = {"seconds": time.monotonic() - started, "peak_memory_gb": peak_memory()}
    write_atomic(recipe.train.out / DONE_FILE, json.dumps({"recipe": to_dict(recipe), **cost}))


def peak_memory() -> float:
    """GB (10^9 bytes) that this process has held at most: of the GPU if it has used one, else of the CPU."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used * (1 if sys.platform == "darwin" else 1024) / 1e9


def finished(recipe: Recipe) -> dict[str, Any] | None:
    """What :func:`train_here` noted of a run of this recipe, but for fields that may change when a run is
    resumed; None if it has not come to its end."""
    try:
        done: dict[str, Any] = json.loads((recipe.train.out / DONE_FILE).read_text())
        of = from_dict(Recipe, done["recipe"])
        same = set(difference(to_dict(of), to_dict(recipe))) <= free_on_resume(recipe)
    except (OSError, ValueError, KeyError, MMGEMError):
        return None
    return done if same and (recipe.train.out / "model").is_dir() else None


def main(folder: Path) -> int:
    """Train what lies in ``folder``; returns the exit code."""
    from mmgem.utils.plugins import load_named_plugins

    try:
        load_named_plugins()
        train_here(from_dict(Recipe, json.loads((folder / RECIPE_FILE).read_text())))
    except MMGEMError as error:
        sys.stderr.write(f"mmgem: error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
