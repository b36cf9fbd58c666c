"""Toy forms of the systems MM-GEM is compared with: what each changes of a toy recipe or network."""

from __future__ import annotations

import copy
from typing import Any

import toys

from mmgem.models.network import MMGEMNetwork

_NO_TEXT = {"image_text__contrastive__weight": 0.0}
_TEXT = toys.LLMS["gpt2"] | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_TILES = {"model__visual_grid": 2}

SYSTEMS: dict[str, dict[str, Any]] = {
    "mmgem": {},
    "clip": {
        "model__kind": "dual_encoder",
        "model__llm__config": _TEXT,
        "image_text__contrastive__weight": 0.5,
        "image_text__caption__weight": 0.0,
        "optim__lr_embeddings": 1e-3,
    },
    "siglip": {
        "model__kind": "dual_encoder",
        "model__llm__config": _TEXT,
        "model__attention": "bidirectional",
        "model__logit_scale": 10.0,
        "model__logit_bias": -10.0,
        "image_text__contrastive__loss": "sigmoid",
        "image_text__caption__weight": 0.0,
        "optim__lr_embeddings": 1e-3,
    },
    "clipcap": {
        "model__kind": "clipcap",
        "model__connector__kind": "clipcap_mlp",
        "model__visual_tokens": 4,
        **_NO_TEXT,
    },
    "clipcap_transformer": {
        "model__kind": "clipcap",
        "model__connector__kind": "clipcap_transformer",
        "model__connector__config": {"clip_tokens": 2, "layers": 1, "heads": 2},
        "model__visual_tokens": 3,
        "optim__lr_llm": 0.0,
        **_NO_TEXT,
    },
    "minigpt4": {"model__kind": "minigpt4", "optim__lr_llm": 0.0, **_TILES, **_NO_TEXT},
    "fromage": {"model__kind": "fromage", "optim__lr_llm": 0.0, "fromage__say_ret__weight": 1.0},
    "grit": {
        "model__kind": "grit",
        "model__logit_scale": 50.0,
        "image_text__contrastive__weight": 0.5,
    },
    "coca": {
        "model__kind": "coca",
        "model__config": {"queries": 3, "heads": 2},
        "image_text__contrastive__weight": 0.5,
        "image_text__caption__weight": 2.0,
        **_TILES,
    },
    "flamingo": {
        "model__kind": "flamingo",
        "model__config": {"latents": 3, "layers": 1, "heads": 2},
        "optim__lr_llm": 0.0,
        **_TILES,
        **_NO_TEXT,
    },
    "blip": {
        "model__kind": "blip",
        "model__config": {"heads": 2},
        "blip__matching__weight": 1.0,
        **_TILES,
    },
}
"""Changes to :func:`toys.recipe`."""


def network(system: str, seed: int = 0, **options: Any) -> MMGEMNetwork:
    """The toy network of a system, with random weights."""
    from mmgem.config import ConnectorConfig

    fields: dict[str, Any] = {}
    llm = "llama"
    for key, value in SYSTEMS[system].items():
        if key == "model__llm__config":
            llm = "gpt2"
        elif key.startswith("model__connector__"):
            connector = fields.setdefault("connector", ConnectorConfig())
            setattr(connector, key.rpartition("__")[2], copy.deepcopy(value))
        elif key.startswith("model__"):
            fields[key.removeprefix("model__")] = copy.deepcopy(value)
    return toys.network(llm, seed=seed, **(fields | options))
