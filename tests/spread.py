"""What several processes do in test_ranks.py; the test starts them, one by one.

torchrun ... tests/spread.py A.json B.json     two runs; in the second a rank is killed, once
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mmgem.config import Recipe, from_dict
from mmgem.distributed.world import SINGLE_PROCESS, World, gather_full_tensors, init_world
from mmgem.errors import StoppedError
from mmgem.train import loop
from mmgem.train.step import accumulate_gradients
from mmgem.train.stop_request import StopRequest


def first_gradients(recipe: Recipe, world: World) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Gradients of step 0, whole, and its losses with the gradients' norm."""
    run = loop.prepare(recipe, world)
    run.network.train()
    seed = (recipe.train.seed, 0, *([world.rank] if world.size > 1 else []))
    torch.manual_seed(loop.mixed_seed(*seed))
    work = [(task, task.load_batch(0, world.device)) for task in run.tasks]
    values = accumulate_gradients(
        run.engine,
        work,
        recipe.train.grad_cache_chunk_size,
        lambda n: loop.mixed_seed(*seed, 7, n),
        "step 0",
    )
    values["norm"] = run.engine.clip_grad_norm(1e9)
    named = run.network.named_parameters()
    return gather_full_tensors({n: p.grad for n, p in named if p.grad is not None}, SINGLE_PROCESS), values


def all_gradients(out: Path, recipes: dict[str, Any]) -> None:
    """Gradients of step 0 of each recipe, whole, in ``out``."""
    with init_world("cpu") as world:
        for name, plain in recipes.items():
            found, values = first_gradients(from_dict(Recipe, plain), world)
            if world.is_main_process:
                save_file(found, str(out / f"{name}.safetensors"))
                (out / f"{name}.json").write_text(json.dumps(values))


def before_step(end: int, stop: Callable[[], None]) -> None:
    """Have ``stop`` called before step ``end``."""
    plain = loop.train_step

    def step(run: Any, number: int, *more: Any) -> Any:
        if number == end:
            stop()
        return plain(run, number, *more)

    loop.train_step = step  # type: ignore[assignment]


def train_until(recipe: dict[str, Any], end: int) -> None:
    """A run that stops at step ``end``."""
    before_step(end, sys.exit)
    loop.train(from_dict(Recipe, recipe))


def train_asked_to_stop(recipe: dict[str, Any]) -> None:
    """A run of which the second process alone is asked to stop, before step 3."""
    request = StopRequest()
    loop.StopRequest = lambda: request  # type: ignore[assignment,misc]
    if os.environ["RANK"] == "1":
        before_step(3, lambda: setattr(request, "asked", True))
    try:
        loop.train(from_dict(Recipe, recipe))
    except StoppedError as error:
        assert "step 4 is saved" in str(error)
    else:
        raise AssertionError("was not stopped")


def train_killed(calm: Recipe, killed: Recipe) -> None:
    """Two runs, of which the second loses its first rank before step 4, while a checkpoint is written.
    Started again, that rank comes late, so that the other one looks for it while it is not there."""
    (killed.train.out / f"group-{os.getpgrp()}").touch()
    first, again = os.environ["RANK"] == "0", os.environ["TORCHELASTIC_RESTART_COUNT"] != "0"
    if first and again:
        time.sleep(1)
    loop.train(calm)
    if first and not again:
        before_step(4, lambda: os.kill(os.getpid(), signal.SIGKILL))
    loop.train(killed)


if __name__ == "__main__":
    torch.set_num_threads(1)
    train_killed(*(from_dict(Recipe, json.loads(Path(path).read_text())) for path in sys.argv[1:]))
