"""Whether a language model reads packed rows as it reads each text alone, tried with its own weights.

Cheap: a few passes over three dozen tokens. Windows are made small meanwhile, so that they are reached.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mmgem.errors import ConfigError
from mmgem.models.families import WORKS
from mmgem.models.kv_cache import BatchedKVCache
from mmgem.models.llm import LLM
from mmgem.models.packing import pack_shared_prefix
from mmgem.utils.hf_config import last_line

TOLERANCE = 1e-2
"""Of the largest value compared: rounding is far below it, a leak far above."""

_WINDOW = 4
_LENGTHS = (9, 7, 3, 5)
_PARENTS = (-1, -1, 0, 0)


def check_unknown(llm: LLM) -> None:
    """:func:`check_packing` of a model whose type is not in the table of :mod:`mmgem.models.families`: that
    of the others is tested, so loading them costs nothing."""
    if llm.lm.config.model_type not in WORKS:
        check_packing(llm)


@torch.no_grad()
def check_packing(llm: LLM) -> None:
    """Compare packed texts, some of which continue another, and a growing cache with what transformers makes
    of each text alone. The model is left as it was.

    Raises ``ConfigError`` if they differ, in hidden states or in logits, or if the model cannot be called
    like this.
    """
    model_type = llm.lm.config.model_type
    try:
        with _prepared(llm):
            problem = _difference(llm)
    except Exception as error:  # whatever a model of another kind raises
        problem = f"cannot be called on packed rows: {type(error).__name__}: {last_line(error)}"
    if problem:
        raise ConfigError(f"model.llm.config: {model_type} {problem}")


@contextlib.contextmanager
def _prepared(llm: LLM) -> Iterator[None]:
    """Evaluation mode, and small windows."""
    config: Any = llm.lm.config
    windows = {n: getattr(config, n, None) for n in ("sliding_window", "attention_chunk_size")}
    windows = {name: value for name, value in windows.items() if value is not None}
    training = {module: module.training for module in llm.modules()}
    llm.eval()
    try:
        for name in windows:
            setattr(config, name, _WINDOW)
        yield
    finally:
        for name, value in windows.items():
            setattr(config, name, value)
        for module, value in training.items():
            module.training = value


def _difference(llm: LLM) -> str | None:
    device = llm.lm.get_input_embeddings().weight.device
    span = min(llm.vocabulary, 1000)
    texts = [torch.arange(n, device=device) * 7 % (span - 1) + 1 + i for i, n in enumerate(_LENGTHS)]
    texts = [text.clamp(max=span - 1) for text in texts]
    whole = [torch.cat([texts[p], t]) if p >= 0 else t for t, p in zip(texts, _PARENTS, strict=True)]
    alone = [llm.body(input_ids=ids[None], use_cache=False).last_hidden_state[0].float() for ids in whole]
    wanted = torch.cat([states[-len(t) :] for states, t in zip(alone, texts, strict=True)])
    if _differ(_packed(llm, texts), wanted):
        return "reads packed texts otherwise than each alone"
    logits = llm.lm(input_ids=whole[0][None], use_cache=False).logits[0].float()
    if _differ(llm.logits(alone[0]), logits):
        return "computes logits otherwise than by its output head"
    cache = BatchedKVCache.empty(llm, 2, device)
    for parts in ((texts[0][:3], texts[1]), (texts[0][3:], texts[3])):
        cache.append([part.tolist() for part in parts])
    if _differ(cache.last[0], alone[0][-1]):
        return "reads texts in parts otherwise than at once"
    return None


def _packed(llm: LLM, texts: list[Tensor]) -> Tensor:
    packing = pack_shared_prefix(list(_LENGTHS), torch.tensor(_PARENTS), row_length=64)
    counts = torch.tensor(_LENGTHS)
    inputs = llm.embed(torch.cat(texts))
    at = packing.span(torch.zeros_like(counts), counts).to(inputs.device)
    rows = inputs.new_zeros(packing.segments.numel(), llm.width).index_copy(0, at, inputs)
    rows = rows.view(*packing.segments.shape, -1)
    return llm(rows, packing.positions.to(at.device), packing.allowed().to(at.device)).flatten(0, 1)[at]


def _differ(got: Tensor, wanted: Tensor) -> bool:
    return not bool((got - wanted).abs().max() <= TOLERANCE * wanted.abs().max())
