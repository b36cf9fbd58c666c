"""One training step's gradients, whatever the tasks are: in one pass a part, or cached in chunks.

With ``train.grad_cache_chunk_size`` a batch is embedded chunk by chunk without keeping activations, the loss
is taken over all of it, and each chunk is run again, with the same random numbers, against the gradient of
its embeddings (gradient caching, Gao et al. 2021, arXiv 2101.06983). What the losses of a task need for that
is its :class:`~mmgem.tasks.base.GradCache`. ``mmgem plan`` goes through the same functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mmgem.distributed.world import World
from mmgem.errors import DataError
from mmgem.models.network import MMGEMNetwork
from mmgem.tasks.base import GradCache, Task, Terms, total_loss
from mmgem.train.engine import Engine

Embeddings = dict[str, Tensor]


def accumulate_gradients(
    engine: Engine,
    work: Sequence[tuple[Task[Any], Any]],
    chunk_size: int,
    seed: Callable[[int], int],
    where: str,
) -> dict[str, float]:
    """Add the gradients of a step's ``work``, tasks and their batches: part after part, so that one part's
    activations are alive at a time. Returns the losses of all processes together.

    ``chunk_size``: items whose activations are kept at once, 0 for all. ``seed``: of the random numbers of
    chunk n. Raises ``DataError``, beginning with ``where``, for a loss that is no number.
    """
    logged: dict[str, Tensor] = {}

    def log(terms: Terms) -> None:
        for name, value in terms.items():
            if name != "surrogate":
                logged[name] = logged.get(name, 0.0) + value.detach()

    passes = [p for task, batch in work for p in _passes(engine, task, batch, chunk_size, seed, log)]
    for n, forward in enumerate(passes):
        last = n == len(passes) - 1
        with engine.sync(last):
            terms = forward()
            log(terms)
            engine.backward(total_loss(terms), last)
    totals = engine.world.all_reduce_sum(*map(float, logged.values()))
    values = dict(zip(logged, totals, strict=True))
    for value in values.values():
        if not math.isfinite(value):
            raise DataError(f"{where}: the loss is {value}; lower the learning rates")
    return values


def _passes(
    engine: Engine,
    task: Task[Any],
    batch: Any,
    chunk_size: int,
    seed: Callable[[int], int],
    log: Callable[[Terms], None],
) -> Iterator[Callable[[], Terms]]:
    """Forward passes whose terms go backward one after the other."""
    cache = task.grad_cache if chunk_size else None
    if cache is None:
        for part in task.split(batch):
            yield lambda part=part: engine.module(task.forward, part, engine.world)  # type: ignore[misc]
        return
    chunks = list(cache.split(batch, chunk_size))
    count = len(chunks)
    # Every process has as many passes: one more than its own adds nothing.
    chunks += chunks[-1:] * (max(engine.world.all_gather_sizes(count)) - count)
    grads: list[Embeddings] = [{}] * len(chunks)
    if cache.over_embeddings:
        embedded = []
        with torch.no_grad():
            for n, chunk in enumerate(chunks):
                torch.manual_seed(seed(n))
                embedded.append(engine.module(cache.embed, chunk))
        terms, grads = embedding_grads(cache, engine.network, embedded[:count], batch, engine.world)
        log(terms)
        grads += grads[-1:] * (len(chunks) - count)
    totals = cache.totals(batch, engine.world)

    def replay(n: int) -> Terms:
        torch.manual_seed(seed(n))
        terms = engine.module(cache.replay, chunks[n], grads[n], totals)
        return {name: value * (n < count) for name, value in terms.items()}

    yield from (lambda n=n: replay(n) for n in range(len(chunks)))


def embedding_grads(
    cache: GradCache[Any], network: MMGEMNetwork, embedded: Sequence[Embeddings], batch: Any, world: World
) -> tuple[Terms, list[Embeddings]]:
    """The losses over the embeddings of a batch's chunks, and their gradients at the embeddings of each.

    ``embedded``: what ``cache.embed`` gave for each chunk. The loss's own parameters (temperature and bias)
    get their gradients here.
    """
    full = {
        name: torch.cat([embeddings[name] for embeddings in embedded]).requires_grad_()
        for name in embedded[0]
    }
    terms = cache.embedding_loss(network, full, batch, world)
    loss = total_loss(terms)
    assert loss is not None
    scalars = [p for p in network.loss_parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, [*full.values(), *scalars], allow_unused=True)
    for p, gradient in zip(scalars, grads[len(full) :], strict=True):
        if gradient is not None:
            gradient = gradient * world.size  # as everything that goes backward: it will be averaged
            p.grad = gradient if p.grad is None else p.grad + gradient
    by_chunk: list[Embeddings] = [{} for _ in embedded]
    for name, gradient in zip(full, grads[: len(full)], strict=True):
        gradient = torch.zeros_like(full[name]) if gradient is None else gradient
        sizes = [len(embeddings[name]) for embeddings in embedded]
        for chunk, share in zip(by_chunk, gradient.split(sizes), strict=True):
            chunk[name] = share
    return terms, by_chunk
