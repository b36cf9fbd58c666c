"""The processes of a run: who they are, and what they tell each other.

Started by ``torchrun``, every process trains on its own part of each batch; alone, a run is one process
and nothing here costs anything. Sums and gathers are PyTorch's own collectives: NCCL between GPUs, gloo
elsewhere.

``all_gather`` keeps gradients: what a process receives from the others, it sends gradients back for. So a
loss over gathered embeddings of which each process computes its own rows has, summed over them, the gradient
of the whole (the local loss of OpenCLIP, arXiv 2212.07143, done exactly).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mmgem.distributed.partition import shard_slice
from mmgem.distributed.rendezvous import fresh_store
from mmgem.errors import ConfigError

T = TypeVar("T")

_ENVIRONMENT = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
_ALIGNMENT = 64  # bytes, as PyTorch's own memory


@dataclass(frozen=True)
class World:
    """``rank`` of ``size`` processes, ``local_rank`` on its machine; ``device``: where it computes."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = torch.device("cpu")  # noqa: RUF009  (immutable)

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes, prints and evaluates."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """This process's contiguous part of ``count`` things, as even as can be."""
        return shard_slice(count, self.rank, self.size)

    def all_reduce_sum(self, *counts: float) -> list[float]:
        """Each count added up over the processes."""
        if self.size == 1:
            return list(counts)
        total = torch.tensor(counts, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def all_gather_sizes(self, count: int) -> list[int]:
        """``count`` of every process, in their order."""
        if self.size == 1:
            return [count]
        own_size = torch.tensor([count], device=self.device)
        sizes = [torch.empty_like(own_size) for _ in range(self.size)]
        dist.all_gather(sizes, own_size)
        return [int(n) for n in sizes]

    def all_gather(self, rows: Tensor, lengths: list[int]) -> Tensor:
        """Rows ``(lengths[rank], ...)`` of every process, one after the other; floats carry gradients
        back."""
        if self.size == 1:
            return rows
        if rows.requires_grad:
            return _AllGather.apply(rows, lengths, self)
        return _all_gather_padded(rows, lengths, self)

    def broadcast(self, value: T) -> T:
        """The main process's ``value``, on every process (anything JSON can say)."""
        if self.size == 1:
            return value
        objects: list[Any] = [value]
        dist.broadcast_object_list(objects, device=self.device)
        return objects[0]

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            self.all_reduce_sum(1.0)

    def main_process_first(self, make: Callable[[], T]) -> T:
        """Run ``make`` on the main process, then on the first of every other machine, then on the rest: what
        is kept in a cache folder is made once, whether or not machines share it."""
        results: list[T] = []
        for is_turn in (
            self.is_main_process,
            not self.is_main_process and self.local_rank == 0,
            self.local_rank != 0,
        ):
            if is_turn:
                results.append(make())
            self.barrier()
        return results[0]


SINGLE_PROCESS = World()


def _all_gather_padded(rows: Tensor, lengths: list[int], world: World) -> Tensor:
    longest = max(lengths)
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    received = rows.new_empty(world.size * longest, *rows.shape[1:])
    dist.all_gather_into_tensor(received, padded)
    return torch.cat([part[:n] for part, n in zip(received.split(longest), lengths, strict=True)])


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, lengths: list[int], world: World) -> Tensor:
        ctx.lengths, ctx.world = lengths, world
        return _all_gather_padded(rows, lengths, world)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        (gradient,) = gradients
        total = gradient.contiguous().clone()
        dist.all_reduce(total)  # every process's rows look at all of them
        start = sum(ctx.lengths[: ctx.world.rank])
        return total[start : start + ctx.lengths[ctx.world.rank]], None, None


@contextmanager
def init_world(device: str, timeout: float = 1800.0) -> Iterator[World]:
    """Join the processes that ``torchrun`` started, or be alone; leaves them at the end.

    ``device``: "auto", "cpu" or "cuda". Raises ``ConfigError`` for a device that is not there.
    """
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise ConfigError("train.device: 'cuda', but this PyTorch sees no GPU")
    cuda = has_cuda and device != "cpu"
    rank, size, local_rank = (int(os.environ.get(n, d)) for n, d in _ENVIRONMENT)
    if cuda and local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"train.device: process {local_rank} of this machine has no GPU of its own "
            f"({torch.cuda.device_count()} there); start as many as there are"
        )
    own_device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(own_device)
    started = False
    if size > 1 and not dist.is_initialized():
        backend, deadline = "nccl" if cuda else "gloo", timedelta(seconds=timeout)
        store = fresh_store(deadline)
        dist.init_process_group(backend, timeout=deadline, store=store, rank=rank, world_size=size)
        started = True
    try:
        yield World(rank, size, local_rank, own_device)
    finally:
        if started:
            dist.destroy_process_group()


def is_shard(tensor: Tensor) -> bool:
    """Whether a tensor is one of FSDP's, of which every process has a part (a ``DTensor``, whose module is
    slow to import and is not, unless there are some)."""
    return hasattr(tensor, "to_local")


def local_tensor(tensor: Any) -> Tensor:
    """The part of a tensor that lies on this process, sharing its memory."""
    return tensor.to_local() if is_shard(tensor) else tensor


def gather_full_tensors(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Copies of full tensors by name, in the CPU's memory, on the main process; the others need not hold them
    all, and get none. Every process has to call it.

    They lie in one piece of memory, so that all of it goes back to the system when they are no longer needed:
    C's allocator keeps what smaller pieces leave.
    """
    total_bytes = (
        sum(_aligned_size(tensor.nbytes) for tensor in tensors.values()) if world.is_main_process else 0
    )
    buffer, offset = torch.empty(total_bytes, dtype=torch.uint8), 0
    gathered: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full: Any = tensor.detach()
        full = full.full_tensor() if is_shard(full) else full
        if world.is_main_process:
            view = buffer[offset : offset + full.nbytes].view(full.dtype)
            gathered[name] = view.view(full.shape).copy_(full)
            offset += _aligned_size(full.nbytes)
    return gathered


def _aligned_size(size: int) -> int:
    """Bytes up to where the next tensor may begin."""
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def distribute_like(full: Tensor, parameter: Any) -> Tensor:
    """``full``, which every process has, placed as ``parameter`` is, if it has its shape."""
    if is_shard(parameter) and full.shape == parameter.shape:
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = parameter.device_mesh, parameter.placements
        return distribute_tensor(full.to(parameter.device), mesh, placements, src_data_rank=None)
    return full.to(parameter.device) if full.ndim else full
