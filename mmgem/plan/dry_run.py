"""A recipe's step gone through without data: the trainer's own code, on the planned number of processes.

The optimiser's tensors are not made but reckoned: two of the size of what trains, one more for the average.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mmgem.config import Recipe
from mmgem.distributed.world import World
from mmgem.models.network import MMGEMNetwork
from mmgem.plan.memory import MemoryTracker
from mmgem.tasks.base import FakeBatch, FakeTensorFactory, Task, Terms, total_loss
from mmgem.train.engine import checkpoint_activations, set_precision
from mmgem.train.optim import configure_trainable
from mmgem.train.step import Embeddings, embedding_grads


@dataclass(frozen=True)
class FakeWorld(World):
    """Processes that all have what this one has, of which only this one is there."""

    def all_reduce_sum(self, *counts: float) -> list[float]:
        """As if every process had counted the same."""
        return [count * self.size for count in counts]

    def all_gather_sizes(self, count: int) -> list[int]:
        """As if every process had ``count``."""
        return [count] * self.size

    def all_gather(self, rows: Tensor, lengths: list[int]) -> Tensor:
        """This process's rows in the place of everyone's."""
        return torch.cat([rows] * self.size) if self.size > 1 else rows


@dataclass
class DryRun:
    """``trained``: parameters that train, by group; ``pairs`` and ``images`` (boxes too) of this process's
    step; ``memory``: bytes of a device by kind, when they are most; ``work``: operators of a step, see
    :class:`MemoryTracker`."""

    trained: dict[str, int]
    pairs: int
    images: int
    memory: Counter[str]
    work: Counter[tuple[torch.dtype, int, int]]


def dry_run(
    recipe: Recipe,
    tasks: Sequence[tuple[Task[Any], Any]],
    network: MMGEMNetwork,
    device: str,
    world_size: int,
) -> DryRun:
    """Go through one step of ``recipe`` with ``network`` (on the meta device; it is changed), as the last of
    ``world_size`` processes on a kind of ``device``.

    ``tasks``: those of the recipe, each with what :meth:`~mmgem.tasks.base.Task.describe_data` gave.
    """
    world = FakeWorld(world_size - 1, world_size)
    sharded = world_size > 1 and recipe.train.strategy == "fsdp"
    groups = configure_trainable(network, recipe.optim, recipe.data.cached)
    trained = {g: sum(network.get_parameter(n).numel() for n in names) for g, names in groups.items()}
    if recipe.train.checkpoint_activations:
        checkpoint_activations(network)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        network.to_empty(device="cpu")
    set_precision(network, recipe.train.precision, device)
    network.train()

    def fake_tensor(*shape: int) -> Tensor:
        with fake:
            return torch.empty(shape)

    batches = [(task, task.fake_batch(data, network, world, fake_tensor)) for task, data in tasks]
    tracker = MemoryTracker({width for _, batch in batches for width in batch.logit_widths})
    _label_tensors(tracker, network, [batch.batch for _, batch in batches])
    _hold_gradients(tracker, network, world_size > 1, sharded)
    step = _Step(network, world, tracker, fake_tensor, sharded)
    with torch.random.fork_rng(), tracker:
        for task, batch in batches:
            step.run(task, batch, recipe.train.grad_cache_chunk_size)
    memory = _with_optimizer_states(recipe, network, tracker.peak, device, world_size)
    pairs = sum(batch.pairs for _, batch in batches)
    return DryRun(trained, pairs, sum(batch.images for _, batch in batches), memory, tracker.work)


@dataclass
class _Step:
    """A task's part of a step, as :mod:`mmgem.train.step` goes through it."""

    network: MMGEMNetwork
    world: World
    tracker: MemoryTracker
    fake_tensor: FakeTensorFactory
    sharded: bool

    def run(self, task: Task[Any], fake: FakeBatch, chunk_size: int) -> None:
        """Forward and backward; of chunks that are alike, one is gone through for all of them."""
        cache = task.grad_cache if chunk_size else None
        if cache is None:
            self.tracker.weight = fake.weight
            for part in task.split(fake.batch):
                _backward(task.forward(self.network, part, self.world))
            self.tracker.weight = 1.0
            return
        chunks = list(cache.split(fake.batch, chunk_size))
        chunks_by_kind: dict[Any, list[Any]] = {}
        for chunk in chunks:
            chunks_by_kind.setdefault(_present_tensors(chunk), []).append(chunk)
        weighted_chunks = [
            (group[0], sum(map(task.pairs, group)) / task.pairs(group[0]))
            for group in chunks_by_kind.values()
        ]
        grads: list[Embeddings] = [{} for _ in weighted_chunks]
        if cache.over_embeddings:
            sizes: dict[str, int] = {}
            with torch.no_grad():
                for chunk, self.tracker.weight in weighted_chunks:
                    widths = {name: x.shape[1:] for name, x in cache.embed(self.network, chunk).items()}
            self.tracker.weight = 1.0
            for chunk in chunks:
                for name, count in cache.sizes(chunk).items():
                    sizes[name] = sizes.get(name, 0) + count
            full = {name: self.fake_tensor(count, *widths[name]) for name, count in sizes.items()}
            _, (gradient,) = embedding_grads(cache, self.network, [full], fake.batch, self.world)
            grads = [
                {name: gradient[name][:count] for name, count in cache.sizes(chunk).items()}
                for chunk, _ in weighted_chunks
            ]
        totals = cache.totals(fake.batch, self.world)
        # From the second chunk on they are there.
        _allocate_gradients(self.tracker, self.network, self.sharded)
        for (chunk, self.tracker.weight), chunk_grads in zip(weighted_chunks, grads, strict=True):
            _backward(cache.replay(self.network, chunk, chunk_grads, totals))
        self.tracker.weight = 1.0


def _present_tensors(chunk: Any) -> tuple[str, ...]:
    """What sets chunks apart that are not alike: the tensors they have."""
    return tuple(name for name, value in vars(chunk).items() if value is not None)


def _label_tensors(tracker: MemoryTracker, network: MMGEMNetwork, batches: Sequence[Any]) -> None:
    """Tell the tracker what is whose."""
    for tensor in (*network.parameters(), *network.buffers()):
        tracker.hold(tensor, "weights")
    for tensor in (value for batch in batches for value in vars(batch).values()):
        if isinstance(tensor, Tensor):
            tracker.hold(tensor, "maps" if tensor.ndim == 4 and tensor.shape[1] != 3 else "batch")
    tracker.label(network.llm, "forward", "llm")
    tracker.label(network.encoder, "frozen_stem", "encoder")
    tracker.label(network.encoder, "trainable_head", "encoder", result="maps")


def _hold_gradients(tracker: MemoryTracker, network: MMGEMNetwork, distributed: bool, sharded: bool) -> None:
    """Tell the tracker which memory becomes that of gradients: on several processes DDP holds all of them
    at all times; FSDP passes them on at once."""
    for p in network.parameters():
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(lambda p: _hold_gradient(tracker, p, sharded))
    if distributed and not sharded:
        _allocate_gradients(tracker, network, sharded)


def _allocate_gradients(tracker: MemoryTracker, network: MMGEMNetwork, sharded: bool) -> None:
    """Let everything that trains have a gradient."""
    for p in network.parameters():
        if p.requires_grad and p.grad is None:
            p.grad = torch.zeros_like(p)
            _hold_gradient(tracker, p, sharded)


def _hold_gradient(tracker: MemoryTracker, p: Tensor, sharded: bool) -> None:
    assert p.grad is not None
    if sharded:
        tracker.forget(p.grad)
    else:
        tracker.hold(p.grad, "gradients")


def _backward(terms: Terms) -> None:
    loss = total_loss(terms)
    if loss is not None:
        loss.backward()


def _with_optimizer_states(
    recipe: Recipe, network: MMGEMNetwork, peak: Counter[str], device: str, count: int
) -> Counter[str]:
    """Bytes by kind with what lies beside a step: optimiser, average, and on a CPU the copy of all that
    trains, from which a checkpoint is written while steps go on."""
    all_weights = _bytes(network.parameters())
    trained = _bytes(p for p in network.parameters() if p.requires_grad)
    shards = count if recipe.train.strategy == "fsdp" else 1
    memory = Counter(peak)
    memory["optimizer"] = 2 * trained // shards
    memory["average"] = trained // shards if recipe.optim.ema_decay else 0
    if device == "cpu":
        memory["checkpoint"] = trained + 2 * trained + (trained if recipe.optim.ema_decay else 0)
    if shards > 1:
        # Whole are: what lies outside the LLM's blocks, all the time, and two blocks, one being fetched.
        blocks = list(network.llm.blocks)
        in_block = [_bytes(b.parameters()) for b in blocks]
        gradients = [_bytes(p for p in b.parameters() if p.requires_grad) for b in blocks]
        memory["weights"] += all_weights // shards - sum(in_block) + 2 * max(in_block)
        memory["gradients"] = trained // shards + trained - sum(gradients) + 2 * max(gradients)
    return memory


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)
