"""The recipe that makes a model of a CLIP or SigLIP checkpoint and a causal LLM, from texts alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmgem.checkpoints.resolve import own_folder
from mmgem.config import Recipe, from_dict
from mmgem.config.recipe import changed


def adoption_recipe(
    checkpoint: str,
    llm: str,
    texts: Sequence[Path],
    out: Path,
    steps: int | None = None,
    overrides: Sequence[str] = (),
) -> Recipe:
    """That of ``recipes/adopt.toml`` for these base weights, files of texts and folder; ``steps``: None: ten
    passes over the texts. ``checkpoint`` may be a model of ours, too, whose image side and text embeddings
    are taken then. ``overrides`` as on the command line. Raises ``ConfigError``."""
    plain: dict[str, Any] = {
        "data": {"texts": [str(path) for path in texts]},
        "preprocessing": {"lowercase": True},
        "init": {"encoder": checkpoint, "llm": llm},
        "model": {
            "connector": {"kind": "unit_mlp"},
            "visual_tokens": 4,
        },
        "optim": {"lr_heads": 1e-3, "lr_llm": 3e-4, "ema_decay": 0.998},
        "text_distillation": {"sampled_softmax": 2048},
        "train": {"out": str(out), "epochs": 10, "steps": steps, "evaluate_every": 500},
    }
    if own_folder(checkpoint) is None:
        plain["model"]["encoder"] = {"kind": "clip"}
    if steps is None:
        del plain["train"]["steps"]
    return changed(from_dict(Recipe, plain), list(overrides))
