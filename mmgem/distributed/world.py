"""The processes of a run: who they are, and what they tell each other.

Started by ``torchrun``, every process (rank) trains on its own part of each batch; alone, a run is one rank
and nothing here costs anything. Sums and gathers are PyTorch's own collectives: NCCL between GPUs, gloo
elsewhere.

``gather`` keeps gradients: what a rank receives from the others, it sends gradients back for. So a loss over
gathered embeddings of which each rank computes its own rows has, summed over the ranks, the gradient of the
whole (the local loss of OpenCLIP, arXiv 2212.07143, done exactly).
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
_ALIGNED = 64  # bytes, as PyTorch's own memory


@dataclass(frozen=True)
class World:
    """``rank`` of ``size`` processes, ``local_rank`` on its machine; ``device``: where it computes."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: torch.device = torch.device("cpu")  # noqa: RUF009  (immutable)

    @property
    def is_main_process(self) -> bool:
        """Whether this rank writes, prints and evaluates."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """This rank's contiguous part of ``count`` things, as even as can be."""
        return shard_slice(count, self.rank, self.size)

    def all_reduce_sum(self, *counts: float) -> list[float]:
        """Each count added up over the ranks."""
        if self.size == 1:
            return list(counts)
        total = torch.tensor(counts, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def all_gather_sizes(self, count: int) -> list[int]:
        """``count`` of every rank, in their order."""
        if self.size == 1:
            return [count]
        own = torch.tensor([count], device=self.device)
        all_of_them = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(all_of_them, own)
        return [int(n) for n in all_of_them]

    def all_gather(self, rows: Tensor, lengths: list[int]) -> Tensor:
        """Rows ``(lengths[rank], ...)`` of every rank, one after the other; floats carry gradients back."""
        if self.size == 1:
            return rows
        if rows.requires_grad:
            return _Gather.apply(rows, lengths, self)
        return _gathered(rows, lengths, self)

    def broadcast(self, value: T) -> T:
        """Rank 0's ``value``, on every rank (anything JSON can say)."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def wait(self) -> None:
        """Until every rank is here."""
        if self.size > 1:
            self.all_reduce_sum(1.0)

    def main_process_first(self, make: Callable[[], T]) -> T:
        """Run ``make`` on the first rank of all, then on the first of every machine, then on the others: what
        is kept in a cache folder is made once, whether or not machines share it."""
        made: list[T] = []
        for mine in (
            self.is_main_process,
            not self.is_main_process and self.local_rank == 0,
            self.local_rank != 0,
        ):
            if mine:
                made.append(make())
            self.wait()
        return made[0]


SINGLE_PROCESS = World()


def _gathered(rows: Tensor, lengths: list[int], world: World) -> Tensor:
    most = max(lengths)
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    received = rows.new_empty(world.size * most, *rows.shape[1:])
    dist.all_gather_into_tensor(received, padded)
    return torch.cat([part[:n] for part, n in zip(received.split(most), lengths, strict=True)])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, lengths: list[int], world: World) -> Tensor:
        ctx.lengths, ctx.world = lengths, world
        return _gathered(rows, lengths, world)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        (gradient,) = gradients
        total = gradient.contiguous().clone()
        dist.all_reduce(total)  # every rank's rows look at all of them
        start = sum(ctx.lengths[: ctx.world.rank])
        return total[start : start + ctx.lengths[ctx.world.rank]], None, None


@contextmanager
def init_world(device: str, timeout: float = 1800.0) -> Iterator[World]:
    """Join the processes that ``torchrun`` started, or be alone; leaves them at the end.

    ``device``: "auto", "cpu" or "cuda". Raises ``ConfigError`` for a device that is not there.
    """
    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise ConfigError("train.device: 'cuda', but this PyTorch sees no GPU")
    cuda = there and device != "cpu"
    rank, size, local = (int(os.environ.get(n, d)) for n, d in _ENVIRONMENT)
    if cuda and local >= torch.cuda.device_count():
        raise ConfigError(
            f"train.device: process {local} of this machine has no GPU of its own "
            f"({torch.cuda.device_count()} there); start as many as there are"
        )
    own = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(own)
    started = False
    if size > 1 and not dist.is_initialized():
        kind, limit = "nccl" if cuda else "gloo", timedelta(seconds=timeout)
        store = fresh_store(limit)
        dist.init_process_group(kind, timeout=limit, store=store, rank=rank, world_size=size)
        started = True
    try:
        yield World(rank, size, local, own)
    finally:
        if started:
            dist.destroy_process_group()


def is_shard(tensor: Tensor) -> bool:
    """Whether a tensor is one of FSDP's, of which every rank has a part (a ``DTensor``, whose module is slow
    to import and is not, unless there are some)."""
    return hasattr(tensor, "to_local")


def local(tensor: Any) -> Tensor:
    """The part of a tensor that lies on this rank, sharing its memory."""
    return tensor.to_local() if is_shard(tensor) else tensor


def copies(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Copies of whole tensors by name, in the CPU's memory, on the first rank; the others need not hold them
    all, and get none. Every rank has to ask.

    They lie in one piece of memory, so that all of it goes back to the system when they are no longer needed:
    C's allocator keeps what smaller pieces leave.
    """
    size = sum(_padded(tensor.nbytes) for tensor in tensors.values()) if world.is_main_process else 0
    room, at = torch.empty(size, dtype=torch.uint8), 0
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole: Any = tensor.detach()
        whole = whole.full_tensor() if is_shard(whole) else whole
        if world.is_main_process:
            place = room[at : at + whole.nbytes].view(whole.dtype)
            kept[name] = place.view(whole.shape).copy_(whole)
            at += _padded(whole.nbytes)
    return kept


def _padded(size: int) -> int:
    """Bytes up to where the next tensor may begin."""
    return -(-size // _ALIGNED) * _ALIGNED


def like(whole: Tensor, parameter: Any) -> Tensor:
    """``whole``, which every rank has, placed as ``parameter`` is, if it has its shape."""
    if is_shard(parameter) and whole.shape == parameter.shape:
        from torch.distributed.tensor import distribute_tensor

        mesh, placements = parameter.device_mesh, parameter.placements
        return distribute_tensor(whole.to(parameter.device), mesh, placements, src_data_rank=None)
    return whole.to(parameter.device) if whole.ndim else whole
