"""What open_clip's losses are on a batch of random numbers, written down once to be compared with.

pip install open_clip_torch==3.3.0        (in an environment of its own)
python tests/open_clip_losses.py PATH/TO/open_clip/loss.py
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

RECORDED = Path(__file__).parent / "fixtures" / "open_clip_losses.json"
LOG_SCALE, BIAS = 2.3, -4.0


def inputs() -> dict[str, Tensor]:
    """Embeddings ``(6, 8)``, hidden states ``(6, 5, 16)`` at five tokens of six texts, an output head ``(12,
    16)`` and the tokens."""
    generator = torch.Generator().manual_seed(7)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return {
        "images": draw(6, 8).requires_grad_(),
        "texts": draw(6, 8).requires_grad_(),
        "states": draw(6, 5, 16).requires_grad_(),
        "head": draw(12, 16).requires_grad_(),
        "tokens": torch.randint(0, 12, (6, 5), generator=generator),
    }


def record(losses: Any) -> dict[str, Any]:
    """Losses and gradients by system, from open_clip's module."""
    return {name: _record(losses, name) for name in ("clip", "siglip", "coca")}


def _record(losses: Any, name: str) -> dict[str, Any]:
    of = inputs()
    scale = torch.tensor(LOG_SCALE, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(BIAS, dtype=torch.float64, requires_grad=True)
    images, texts = F.normalize(of["images"], dim=-1), F.normalize(of["texts"], dim=-1)
    if name == "clip":
        loss = losses.ClipLoss()(images, texts, scale.exp())
    elif name == "siglip":
        loss = losses.SigLipLoss()(images, texts, scale.exp(), bias)
    else:
        # Weights: the defaults of open_clip's command line.
        coca = losses.CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0, pad_id=-1)
        logits = of["states"] @ of["head"].T
        loss = sum(coca(images, texts, logits, of["tokens"], scale.exp()))
    loss.backward()
    grads = {n: x.grad.tolist() for n, x in of.items() if x.grad is not None}
    grads["log_scale"] = float(scale.grad.item())
    if bias.grad is not None:
        grads["bias"] = float(bias.grad)
    return {"loss": float(loss.detach()), "grads": grads}


if __name__ == "__main__":
    spec = importlib.util.spec_from_file_location("open_clip_loss", sys.argv[1])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    RECORDED.write_text(json.dumps(record(module)) + "\n")
