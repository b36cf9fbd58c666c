"""How a network trains on several processes: replicated (DDP), sharded (FSDP2), or alone; PyTorch's engines.

Every forward goes through one module, :class:`NetworkCall`: that is where DDP and FSDP look. Both average
gradients over the processes, so a process's share of the loss is multiplied by their number before it goes
backward. What is kept on disk are full tensors, whatever the number of processes that trained them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmgem.checkpoints.model_folder import build
from mmgem.config import TrainConfig
from mmgem.distributed.world import SINGLE_PROCESS, World, gather_full_tensors, is_shard, local_tensor
from mmgem.errors import ConfigError
from mmgem.models.network import MMGEMNetwork


class NetworkCall(nn.Module):
    """The network behind one ``forward``: where DDP and FSDP look, whichever task calls it."""

    def __init__(self, network: MMGEMNetwork):
        super().__init__()
        self.network = network

    def forward(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """``call(network, *arguments)``."""
        return call(self.network, *arguments)


class Engine:
    """``network``: the one that trains (its parameters perhaps shards); ``module``: what to call."""

    def __init__(
        self,
        network: MMGEMNetwork,
        config: TrainConfig,
        world: World = SINGLE_PROCESS,
        lora_rank: int = 0,
    ):
        self.network, self.world, self.lora_rank = network, world, lora_rank
        self.strategy = config.strategy if world.size > 1 else "none"
        network.to(world.device)
        set_precision(network, config.precision, world.device.type)
        if config.checkpoint_activations:
            checkpoint_activations(network)
        if config.compile:
            for block in network.llm.blocks:
                block.compile(dynamic=True)
        self.module: nn.Module = NetworkCall(network)
        if self.strategy == "ddp":
            from torch.nn.parallel import DistributedDataParallel

            # Gradients lie in the buckets they are exchanged in: one copy of them, not two.
            self.module = DistributedDataParallel(
                self.module, broadcast_buffers=False, gradient_as_bucket_view=True
            )
        elif self.strategy == "fsdp":
            self._shard()

    def _shard(self) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.world.device.type, (self.world.size,))
        for block in self.network.llm.blocks:
            fully_shard(block, mesh=mesh)
        # Scalars cannot be sharded.
        fully_shard(self.module, mesh=mesh, ignored_params=set(self.network.loss_parameters()))

    def sync(self, last: bool) -> AbstractContextManager[Any]:
        """Around a forward and its backward: gradients are exchanged in the ``last`` of a step (FSDP: in
        each, so that no process ever holds them in full)."""
        if self.strategy == "ddp" and not last:
            return self.module.no_sync()  # type: ignore[operator]
        return nullcontext()

    def backward(self, loss: Tensor | None, last: bool) -> None:
        """Add the gradients of this process's share of a loss; None: a pass that has none."""
        loss = None if loss is None else loss * self.world.size
        if self.strategy == "ddp" and last:
            # DDP waits for every parameter; those this pass did not use may hold gradients of an earlier one.
            zero = torch.zeros((), device=self.world.device)
            loss = _TouchAll.apply(zero if loss is None else loss, *self.trainable_parameters())
        if loss is not None:
            loss.backward()
        elif self.strategy == "fsdp":
            self.module.reshard()  # type: ignore[operator]  # a backward pass would have

    def trainable_parameters(self) -> list[nn.Parameter]:
        """Parameters that train."""
        return [p for p in self.network.parameters() if p.requires_grad]

    def clip_grad_norm(self, max_norm: float) -> float:
        """Scale all gradients so that their norm is at most ``max_norm``; returns the norm it was."""
        if self.strategy != "fsdp":
            return float(nn.utils.clip_grad_norm_(self.trainable_parameters(), max_norm))
        for p in self.network.loss_parameters():
            if p.grad is not None:
                dist.all_reduce(p.grad)
                p.grad /= self.world.size
        grads = [p.grad for p in self.trainable_parameters() if p.grad is not None]
        sharded_grads = [local_tensor(g) for g in grads if is_shard(g)]
        replicated_grads = [g for g in grads if not is_shard(g)]
        (sharded_square,) = self.world.all_reduce_sum(
            sum(float(g.double().square().sum()) for g in sharded_grads)
        )
        norm = (sharded_square + sum(float(g.double().square().sum()) for g in replicated_grads)) ** 0.5
        if norm > max_norm:
            torch._foreach_mul_([*sharded_grads, *replicated_grads], max_norm / (norm + 1e-6))
        return norm

    def full_network(self) -> MMGEMNetwork | None:
        """The network with all of its current weights, to evaluate or export; None but on the main
        process. Every process has to call it."""
        if self.strategy != "fsdp":
            return self.network if self.world.is_main_process else None
        tensors = gather_full_tensors(self.network.state_dict(), self.world)
        if not self.world.is_main_process:
            return None
        full = build(self.network.config)
        if self.lora_rank:
            from mmgem.train.optim import add_lora

            add_lora(full, self.lora_rank)
        full.load_state_dict(tensors)
        return full.to(self.world.device)


class _TouchAll(torch.autograd.Function):
    """A loss that depends on more parameters than it was computed from. They get no gradient of it: not even
    zeros, which would take as much memory as the gradients."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.count = len(parameters)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients + (None,) * ctx.count


@contextmanager
def tf32(device: torch.device) -> Iterator[None]:
    """On a GPU, multiply float32 matrices as TF32, as convolutions are anyway; a process's choice, undone."""
    if device.type != "cuda":
        yield
        return
    options = torch.backends.cuda.matmul
    before, options.allow_tf32 = options.allow_tf32, True
    try:
        yield
    finally:
        options.allow_tf32 = before


def set_precision(network: MMGEMNetwork, precision: str, device: str) -> None:
    """Choose what the network computes in while it trains, as ``train.precision`` says, on a kind of
    ``device``: the LLM everywhere, the encoder on "cuda" (CPUs convolve no faster in bfloat16, and slower
    where they have to emulate it)."""
    for llm in network.llms:
        llm.training_dtype = getattr(torch, precision)
    network.encoder.training_dtype = network.llm.training_dtype if device == "cuda" else torch.float32


def checkpoint_activations(network: MMGEMNetwork) -> None:
    """Keep no activations inside blocks: they are computed again in the backward pass. An encoder that cannot
    keeps its own. Raises ``ConfigError`` if the LLM cannot."""
    if not network.llm.lm.supports_gradient_checkpointing:
        raise ConfigError(f"train.checkpoint_activations: {type(network.llm.lm).__name__} cannot")
    encoders: Iterable[Any] = [network.llm.lm, getattr(network.encoder, "net", None)]
    for model in encoders:
        if getattr(model, "supports_gradient_checkpointing", False):
            # Earlier transformers 5 have the second name only.
            enable = getattr(model, "activation_checkpointing_enable", None)
            (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
