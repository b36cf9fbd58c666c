"""Adapter for transformers causal LMs: hidden states in, hidden states or logits out.

Nothing of transformers is copied or patched. Truncation keeps the first N blocks. Attention masks are
built by us and passed as 4-D, so causal, bidirectional and packed rows are one code path; cached
decoding uses the library's ``DynamicCache``. Which models can be read so: :mod:`mmgem.models.families`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmgem.errors import ConfigError
from mmgem.models.attention_masks import layer_masks
from mmgem.models.families import check_config, check_type, logit_factor
from mmgem.utils.hf_config import export_config as export_config
from mmgem.utils.hf_config import make_config
from mmgem.utils.pretrained import build_model


class LLM(nn.Module):
    """A causal language model without its loss: ``embed`` tokens, run ``forward``, read ``logits``."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        from transformers import AutoModelForCausalLM

        options = dict(config)
        model_type = options.pop("model_type", None)
        if model_type is None:
            raise ConfigError("model.llm.config: model_type is missing")
        check_type(model_type)
        hf_config = make_config(model_type, options, "model.llm.config")
        check_config(hf_config)
        hf_config.use_cache = False
        self.lm = build_model(AutoModelForCausalLM, hf_config, f"model.llm.config: no {model_type}")
        find_blocks(self.lm)
        if self.lm.get_output_embeddings() is None:
            raise ConfigError(f"model.llm.config: {model_type} has no output head")
        # Without initialisation (see checkpoint.build) the library does not tie the head either.
        self.lm.tie_weights()
        self.training_dtype = torch.float32
        """What the blocks and the head compute in while they train; weights and sums stay in float32."""

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are in; inputs and outputs are float32 in any case."""
        return self.lm.get_input_embeddings().weight.dtype

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return self.lm.config.hidden_size

    @property
    def vocabulary(self) -> int:
        """Rows of the output head."""
        return self.lm.get_input_embeddings().weight.shape[0]

    @property
    def positions(self) -> float:
        """How many tokens a sequence may have; infinity where the model's config does not say."""
        return getattr(self.lm.config, "max_position_embeddings", None) or float("inf")

    @property
    def body(self) -> nn.Module:
        """The model without its head."""
        whole: Any = self.lm
        return whole.model if whole.base_model is whole else whole.base_model

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks, first to last."""
        return find_blocks(self.lm)

    def embed(self, ids: Tensor) -> Tensor:
        """Input vectors of token ids: ``(...)`` int64 -> ``(..., H)``."""
        return self.lm.get_input_embeddings()(ids).float()

    def forward(
        self,
        inputs: Tensor,
        positions: Tensor,
        allowed: Tensor | None = None,
        cache: Any = None,
        key_positions: Tensor | None = None,
    ) -> Tensor:
        """Run the blocks and the final norm. The model's own attention windows are applied in any case.

        ``inputs``: ``(B, L, H)`` float; ``positions``: ``(B, L)`` int64, each sequence counting from 0;
        ``allowed``: ``(B, L, S)`` bool, True where row position may look at column position (S = cached +
        L); None: at itself and all before. ``cache``: a transformers ``Cache``, extended in place.
        ``key_positions``: ``(B, S)`` int64, the positions of the columns where something is cached. Returns
        ``(B, L, H)``.
        """
        mask: Tensor | dict[str, Tensor] | None = None
        if allowed is not None:
            keys = positions if key_positions is None else key_positions
            mask = layer_masks(self.lm.config, allowed, positions, keys, self.dtype)
        with self._precision(inputs):
            out = self.body(
                inputs_embeds=inputs.to(self.dtype),
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=cache is not None,
            )
        return out.last_hidden_state.to(inputs.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """Output head: ``(..., H)`` -> ``(..., vocabulary)`` float, with the model's factor and soft cap."""
        with self._precision(hidden):
            return self._scaled(self.lm.get_output_embeddings()(hidden.to(self.dtype)))

    def logits_of(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Logits of some tokens only: ``(..., H)``, ``(S,)`` int64 -> ``(..., S)``."""
        head = self.lm.get_output_embeddings()
        bias = head.bias[tokens] if getattr(head, "bias", None) is not None else None
        with self._precision(hidden):
            return self._scaled(torch.nn.functional.linear(hidden.to(self.dtype), head.weight[tokens], bias))

    def _precision(self, like: Tensor) -> torch.autocast:
        return autocast(like, self.training_dtype if self.training else torch.float32)

    def _scaled(self, logits: Tensor) -> Tensor:
        factor = logit_factor(self.lm.config)
        if factor != 1.0:
            logits = logits * factor
        cap = getattr(self.lm.config, "final_logit_softcapping", None)
        return torch.tanh(logits / cap) * cap if cap else logits


def autocast(like: Tensor, dtype: torch.dtype) -> torch.autocast:
    """A context in which matrix products on the device of ``like`` are taken in ``dtype``; of float32 it
    changes nothing."""
    lower = dtype != torch.float32
    return torch.autocast(like.device.type, dtype if lower else torch.bfloat16, enabled=lower)


def find_blocks(lm: nn.Module) -> nn.ModuleList:
    """The list of transformer blocks of a transformers causal LM. Raises ``ConfigError`` if none is found."""
    config: Any = lm.config
    count = getattr(config, "num_hidden_layers", None)
    for module in lm.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise ConfigError(f"model.llm.config: {config.model_type} has no list of its {count} blocks")


def truncate(lm: nn.Module, keep: Sequence[int]) -> None:
    """Keep the blocks numbered ``keep`` (ascending, from 0) of ``lm``, in place.

    Raises ``ConfigError`` if there is no such block or the order is another.
    """
    blocks = find_blocks(lm)
    if not keep or list(keep) != sorted(set(keep)) or keep[0] < 0 or keep[-1] >= len(blocks):
        raise ConfigError(f"init.keep_layers: {list(keep)} are not ascending numbers below {len(blocks)}")
    chosen = [blocks[i] for i in keep]
    del blocks[:]
    blocks.extend(chosen)
    # The KV cache finds a layer's slot by this number.
    for place, block in enumerate(blocks):
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = place  # type: ignore[assignment]
    config: Any = lm.config
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in keep]
    config.num_hidden_layers = len(chosen)
