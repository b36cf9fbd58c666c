"""AdamW groups, schedule and the moving average of the weights."""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor, nn

from mmgem.config import OptimConfig
from mmgem.distributed.world import is_shard, local_tensor
from mmgem.errors import ConfigError
from mmgem.models.network import MMGEMNetwork


def configure_trainable(network: MMGEMNetwork, config: OptimConfig, cached: bool) -> dict[str, list[str]]:
    """Names of the parameters of each group that trains; all others are frozen here.

    ``cached``: the encoder's frozen stem comes from the feature cache, so it cannot train. Raises
    ``ConfigError`` for an entry of ``optim.trainable`` that no parameter's name begins with, or none that
    could train.
    """
    if config.lora_rank:
        add_lora(network, config.lora_rank)
    stem = {id(p) for p in network.encoder.frozen_parameters()} if cached else set()
    groups: dict[str, list[str]] = {"heads": [], "llm": [], "embeddings": [], "encoder": []}
    rates = {
        "heads": config.lr_heads,
        "llm": config.lr_llm,
        "embeddings": config.lr_embeddings,
        "encoder": config.lr_encoder,
    }
    for name, p in network.named_parameters():
        group = network.parameter_group(name, p)
        frozen_by_lora = config.lora_rank and group in ("llm", "embeddings") and "lora_" not in name
        chosen = not config.trainable or name.startswith(tuple(config.trainable))
        p.requires_grad_(
            rates[group] > 0 and id(p) not in stem and not frozen_by_lora and network.trains(name) and chosen
        )
        if p.requires_grad:
            groups[group].append(name)
    names = [name for group in groups.values() for name in group]
    for start in config.trainable:
        if not any(name.startswith(start) for name in names):
            raise ConfigError(f"optim.trainable: no parameter that could train begins with {start!r}")
    return {g: names for g, names in groups.items() if names}


def build_optimizer(
    network: MMGEMNetwork, groups: dict[str, list[str]], config: OptimConfig
) -> torch.optim.AdamW:
    """AdamW over ``groups``; vectors and scalars (norms, biases, markers, temperature) do not decay."""
    parameters = dict(network.named_parameters())
    param_groups = []
    for group, names in groups.items():
        rate = getattr(config, f"lr_{group}")
        group_parameters = [parameters[n] for n in names]
        for decays, sharded in product((True, False), (True, False)):
            selected = [p for p in group_parameters if (p.ndim >= 2) == decays and is_shard(p) == sharded]
            if selected:
                decay = config.weight_decay if decays else 0.0
                param_groups.append({"params": selected, "lr": rate, "base": rate, "weight_decay": decay})
    return torch.optim.AdamW(param_groups, betas=config.betas, fused=True)


def lr_multiplier(step: int, total: int, config: OptimConfig) -> float:
    """Factor on every group's rate: linear warm-up, then a cosine to ``final_lr_ratio``."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    return config.final_lr_ratio + (1 - config.final_lr_ratio) * 0.5 * (
        1 + math.cos(math.pi * min(1.0, progress))
    )


class ExponentialMovingAverage:
    """Exponential moving average of the trained parameters, warmed up so that early steps count little; of
    which ``start_share`` stays with those it began with, as if each value were averaged with them first."""

    def __init__(self, network: nn.Module, decay: float, start_share: float = 0.0):
        self.decay, self.start_share = decay, start_share
        self.values = {n: p.detach().clone() for n, p in network.named_parameters() if p.requires_grad}
        """Placed as the parameters are: on several processes perhaps shards."""
        self.start = {n: value.clone() for n, value in self.values.items()} if start_share else {}

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Move towards the current weights after ``step`` (from 0)."""
        decay = min(self.decay, (step + 1) / (step + 10))
        current = dict(network.named_parameters())
        averages = [local_tensor(value) for value in self.values.values()]
        target = [local_tensor(current[n].detach()) for n in self.values]
        if self.start:
            start = [local_tensor(value) for value in self.start.values()]
            target = list(torch._foreach_lerp(target, start, self.start_share))
        torch._foreach_lerp_(averages, target, 1 - decay)

    @torch.no_grad()
    def swap_weights(self, network: nn.Module) -> None:
        """Exchange the averaged and the current weights; call it twice to get back."""
        parameters = dict(network.named_parameters())
        for name, value in self.values.items():
            average, weight = local_tensor(value), local_tensor(parameters[name].detach())
            saved = weight.clone()
            weight.copy_(average)
            average.copy_(saved)


def add_lora(network: MMGEMNetwork, rank: int) -> None:
    """Put LoRA adapters (arXiv 2106.09685) on every linear map of the LLM's blocks, in place."""
    from peft import LoraConfig, inject_adapter_in_model

    linear_layers = {n.rsplit(".", 1)[-1]: m for n, m in network.llm.blocks.named_modules() if _is_linear(m)}
    lora_config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=sorted(linear_layers),
        fan_in_fan_out=not all(isinstance(m, nn.Linear) for m in linear_layers.values()),
    )
    inject_adapter_in_model(lora_config, network.llm.lm)


def merge_lora(state: dict[str, Tensor], network: MMGEMNetwork) -> dict[str, Tensor]:
    """State dict in which adapters are folded into the weights they adapt and names are the base model's."""
    from peft.tuners.lora import LoraLayer

    deltas = {
        name: module.get_delta_weight("default").detach()
        for name, module in network.named_modules()
        if isinstance(module, LoraLayer)
    }
    merged = {}
    for name, value in state.items():
        if "lora_" in name:
            continue
        owner, _, last = name.rpartition(".base_layer.")
        if owner:
            merged[f"{owner}.{last}"] = value + deltas[owner] if last == "weight" else value
        else:
            merged[name] = value
    return merged


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
