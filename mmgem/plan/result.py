"""What a plan says: parameters, memory, operations, time and money, and what to change."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmgem.plan.hardware import Hardware
from mmgem.plan.times import Bounds

USABLE = 0.9
"""Share of a device's memory that tensors may fill: the rest is for its context, the libraries' workspaces
and what lies unused between tensors."""


@dataclass(frozen=True)
class Advice:
    """A change and what it is paid with; with it and those before it: ``memory_gb`` of a device, ``seconds``
    a pair at least, and whether it fits."""

    change: str
    cost: str
    memory_gb: float
    seconds: float
    fits: bool


@dataclass
class Plan:
    """``parameters``: by part, ``trained``: by group of the optimiser; ``pairs`` and ``images`` (boxes too)
    of a step on all devices; ``memory``: GB (10^9 bytes) of one device by kind, when they are most;
    ``operations``: 10^12 of one device's step, by type, ``operations_a_pair``: of each of its pairs, where
    devices differ of one that has most; ``communication``: GB it sends in a step; ``bounds``: None without
    hardware; ``steps``: of the run, None if nobody says how long it is; ``assumed``: what could not be read,
    in words."""

    parameters: dict[str, int]
    trained: dict[str, int]
    pairs: int
    images: int
    memory: dict[str, float]
    operations: dict[str, float]
    operations_a_pair: float
    communication: float
    hardware: Hardware | None
    bounds: Bounds | None
    steps: int | None
    assumed: list[str]
    advice: list[Advice] = field(default_factory=list)

    @property
    def total_memory(self) -> float:
        """GB a device."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool | None:
        """Whether the memory is enough; None without hardware."""
        return None if self.hardware is None else self.total_memory <= USABLE * self.hardware.memory

    @property
    def days(self) -> float | None:
        """Of the whole run, at least."""
        return None if self.bounds is None or not self.steps else self.bounds.step * self.steps / 86400

    @property
    def cost(self) -> float | None:
        """$ of the whole run, at least."""
        if self.days is None or self.hardware is None or self.hardware.price is None:
            return None
        return self.days * 24 * self.hardware.price * self.hardware.count

    def to_json(self) -> dict[str, Any]:
        """Plain form."""
        hardware = None if self.hardware is None else dict(vars(self.hardware))
        return {
            "parameters": {**self.parameters, "trained": sum(self.trained.values())},
            "trained": self.trained,
            "pairs": self.pairs,
            "images": self.images,
            "memory_gb": {**self.memory, "total": self.total_memory},
            "tflop": {**self.operations, "pair": self.operations_a_pair},
            "communication_gb": self.communication,
            "hardware": hardware,
            "fits": self.fits,
            "seconds": None if self.bounds is None else vars(self.bounds),
            "steps": self.steps,
            "days": self.days,
            "cost": self.cost,
            "assumed": self.assumed,
            "advice": [vars(a) for a in self.advice],
        }
