"""A small copy of a model: the token table in 4 bits, every other matrix in 8."""

from __future__ import annotations

from pathlib import Path

from mmgem.models.checkpoint import load_model, own_tensors, save_model
from mmgem.models.network import MMGEMNetwork


def shipping_bits(network: MMGEMNetwork) -> dict[str, int]:
    """Bits per tensor; vectors (norms, biases, markers) stay float32."""
    table = network.llm.lm.get_input_embeddings().weight
    return {n: 4 if p is table else 8 for n, p in own_tensors(network).items() if p.ndim >= 2}


def ship(source: Path, out: Path) -> int:
    """Write a rounded copy of model folder ``source`` to ``out``; returns its size in bytes.

    Raises ``CheckpointError`` if ``source`` cannot be loaded.
    """
    network, tokenizer = load_model(source)
    card = (source / "README.md").read_text(encoding="utf-8") if (source / "README.md").exists() else ""
    save_model(out, network, tokenizer, card, shipping_bits(network))
    return sum(f.stat().st_size for f in out.iterdir())
