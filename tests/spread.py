"""What several processes do in test_ranks.py; the test starts them, one by one.

python tests/spread.py gradients OUT RECIPES.json     gradients of step 0 of each recipe, whole, in OUT
python tests/spread.py train RECIPE.json              a whole run
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mmgem.config import Recipe, from_dict
from mmgem.ranks import Ranks, gathered, ranks_of
from mmgem.train import loop
from mmgem.train.step import gradients


def first_gradients(recipe: Recipe, ranks: Ranks) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Gradients of step 0, whole, and its losses with the gradients' norm."""
    run = loop.prepare(recipe, ranks)
    run.network.train()
    seed = (recipe.train.seed, 0, *([ranks.rank] if ranks.size > 1 else []))
    torch.manual_seed(loop.mixed_seed(*seed))
    parts, _ = loop._parts(run, 0)
    values = gradients(
        run.engine, parts, recipe.train.chunk, lambda n: loop.mixed_seed(*seed, 7, n), "step 0"
    )
    values["norm"] = run.engine.clip(1e9)
    named = run.network.named_parameters()
    return {n: gathered(p.grad) for n, p in named if p.grad is not None}, values


def all_gradients(out: Path, recipes: dict[str, Any]) -> None:
    with ranks_of("cpu") as ranks:
        for name, plain in recipes.items():
            found, values = first_gradients(from_dict(Recipe, plain), ranks)
            if ranks.first:
                save_file(found, str(out / f"{name}.safetensors"))
                (out / f"{name}.json").write_text(json.dumps(values))


def train_until(recipe: Recipe) -> None:
    """A run that stops at the step named in the environment."""
    end = int(os.environ.get("STOPS_AT", "-1"))
    plain = loop.one_step

    def step(run: Any, number: int, *more: Any) -> Any:
        if number == end:
            raise SystemExit
        return plain(run, number, *more)

    loop.one_step = step  # type: ignore[assignment]
    loop.train(recipe)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "gradients":
        all_gradients(Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text()))
    else:
        train_until(from_dict(Recipe, json.loads(Path(sys.argv[2]).read_text())))
