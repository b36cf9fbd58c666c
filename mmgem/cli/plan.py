"""``mmgem plan``: what a recipe takes, before it runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmgem.cli.inputs import quiet_libraries
from mmgem.cli.output import JsonOption, print_json
from mmgem.errors import UsageError

if TYPE_CHECKING:
    from mmgem.config import Recipe
    from mmgem.plan import Hardware, Plan


def _above_0(value: float | None) -> float | None:
    if value is not None and not 0 < value < math.inf:
        raise typer.BadParameter(f"{value:g} is not a number above 0")
    return value


def plan(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="What would be trained.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Fields to change, like train.batch_size=1024."),
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(metavar="NAME", help="a100, h100, h200, l4 or rtx4090; or say its figures:")
    ] = None,
    memory: Annotated[
        float | None, typer.Option(metavar="GB", callback=_above_0, help="Memory of one device.")
    ] = None,
    flops: Annotated[
        float | None,
        typer.Option(metavar="TFLOPS", callback=_above_0, help="Its peak, in the recipe's precision."),
    ] = None,
    bandwidth: Annotated[
        float | None, typer.Option(metavar="GB/S", callback=_above_0, help="Of its memory.")
    ] = None,
    count: Annotated[
        int, typer.Option(min=1, metavar="N", help="Devices, each with a process of its own.")
    ] = 1,
    price: Annotated[
        float | None, typer.Option(metavar="$/H", callback=_above_0, help="Of one device an hour.")
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Length of the run.  [default: the recipe's epochs]"),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Of a caption.  [default: as in data.train, or 16]"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a recipe takes: parameters, memory, operations, and on given hardware the least time and cost.

    If it does not fit, changes that make it fit, the cheapest first; then, if devices would wait for photos,
    what makes those faster. Nothing is trained. Memory is that of tensors in use; times are bounds from the
    hardware's peaks, which no run reaches. With --json:
    {"parameters", "trained", "pairs", "images", "memory_gb", "tflop", "communication_gb", "hardware", "fits",
    "seconds", "steps", "days", "cost", "assumed", "advice": [{"change", "cost", "memory_gb", "seconds",
    "fits"}]}; null what is not known.
    """
    from mmgem.config.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    requested = _hardware(loaded, hardware, (memory, flops, bandwidth), count, price)
    quiet_libraries()
    from mmgem.plan import plan as make

    report = make(loaded, requested, pairs, tokens)
    if as_json:
        print_json(report.to_json())
    else:
        _show(report)


def _hardware(
    recipe: Recipe,
    name: str | None,
    figures: tuple[float | None, float | None, float | None],
    count: int,
    price: float | None,
) -> Hardware | None:
    from mmgem.plan.hardware import Hardware, known_hardware

    known_figures = [figure for figure in figures if figure is not None]
    if name is not None:
        if known_figures:
            raise UsageError("--hardware excludes --memory, --flops and --bandwidth")
        return known_hardware(name, count, price)
    if not known_figures:
        if count != 1 or price is not None:
            raise UsageError("--count and --price: of what? Name the --hardware")
        return None
    if len(known_figures) < len(figures):
        raise UsageError("--memory, --flops and --bandwidth go together")
    memory, flops, bandwidth = known_figures
    device = "cpu" if recipe.train.device == "cpu" else "cuda"
    return Hardware("as given", memory, flops, flops, bandwidth, count, price, device)  # type: ignore[arg-type]


def _show(report: Plan) -> None:
    from mmgem.plan.result import USABLE

    for assumption in report.assumed:
        print(f"assumed      {assumption}")
    parts = ", ".join(f"{part} {n:,}" for part, n in report.parameters.items() if n and part != "total")
    print(f"parameters   {report.parameters['total']:,}: {parts}")
    groups = ", ".join(f"{group} {n:,}" for group, n in report.trained.items())
    print(f"that train   {sum(report.trained.values()):,}: {groups}")
    print(f"a step       {report.pairs:,} pairs of {report.images:,} images and boxes")
    kinds = ", ".join(f"{kind} {size:.2f}" for kind, size in report.memory.items())
    print(f"memory       {report.total_memory:.2f} GB a device: {kinds}")
    types = ", ".join(f"{name} {n:.3g}" for name, n in report.operations.items())
    print(f"operations   {report.operations_a_pair:.3g} TFLOP a pair; of a device's step, TFLOP: {types}")
    if report.communication:
        print(f"exchange     {report.communication:.2f} GB sent by a device in a step")
    hardware, least = report.hardware, report.bounds
    if hardware is None or least is None:
        return
    print(
        f"step         at least {least.step:.3g} s on {hardware.count} x {hardware.name}: arithmetic "
        f"{least.arithmetic:.3g}, memory traffic {least.traffic:.3g}, operator by operator "
        f"{least.operators:.3g}; photos {least.data:.3g} of one core"
    )
    if report.days is not None and report.steps is not None:
        cost = "" if report.cost is None else f", ${report.cost:,.0f}"
        pairs = report.steps * report.pairs
        print(
            f"run          {report.steps:,} steps, {pairs:,} pairs: at least {_duration(report.days)}{cost}"
        )
    usable = USABLE * hardware.memory
    room = f"{report.total_memory:.1f} of {usable:.1f} GB ({USABLE:.0%} of {hardware.memory:g})"
    print(f"it fits      {room}" if report.fits else f"too large    {room}")
    for advice in report.advice:
        print(
            f"  {advice.change}: {advice.memory_gb:.1f} GB, {1e3 * advice.seconds:.3g} ms a pair; "
            f"{advice.cost}" + (" -> fits" if advice.fits and not report.fits else "")
        )
    if not report.fits and not any(a.fits for a in report.advice):
        least_memory = report.advice[-1].memory_gb if report.advice else report.total_memory
        print(f"  no change is enough: devices of {least_memory / USABLE:.0f} GB are needed")


def _duration(days: float) -> str:
    """Days in the largest unit of which there is at least one: ``0.052 s``, ``12.5 min``, ``3.2 h``."""
    for name, seconds in (("days", 86400), ("h", 3600), ("min", 60)):
        if days * 86400 >= seconds:
            return f"{days * 86400 / seconds:.3g} {name}"
    return f"{days * 86400:.3g} s"
