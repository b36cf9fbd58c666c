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
    given = _hardware(loaded, hardware, (memory, flops, bandwidth), count, price)
    quiet_libraries()
    from mmgem.plan import plan as make

    made = make(loaded, given, pairs, tokens)
    if as_json:
        print_json(made.to_json())
    else:
        _show(made)


def _hardware(
    recipe: Recipe,
    name: str | None,
    figures: tuple[float | None, float | None, float | None],
    count: int,
    price: float | None,
) -> Hardware | None:
    from mmgem.plan.hardware import Hardware, known_hardware

    given = [figure for figure in figures if figure is not None]
    if name is not None:
        if given:
            raise UsageError("--hardware excludes --memory, --flops and --bandwidth")
        return known_hardware(name, count, price)
    if not given:
        if count != 1 or price is not None:
            raise UsageError("--count and --price: of what? Name the --hardware")
        return None
    if len(given) < len(figures):
        raise UsageError("--memory, --flops and --bandwidth go together")
    memory, flops, bandwidth = given
    device = "cpu" if recipe.train.device == "cpu" else "cuda"
    return Hardware("as given", memory, flops, flops, bandwidth, count, price, device)  # type: ignore[arg-type]


def _show(made: Plan) -> None:
    from mmgem.plan.result import USABLE

    for said in made.assumed:
        print(f"assumed      {said}")
    parts = ", ".join(f"{part} {n:,}" for part, n in made.parameters.items() if n and part != "total")
    print(f"parameters   {made.parameters['total']:,}: {parts}")
    groups = ", ".join(f"{group} {n:,}" for group, n in made.trained.items())
    print(f"that train   {sum(made.trained.values()):,}: {groups}")
    print(f"a step       {made.pairs:,} pairs of {made.images:,} images and boxes")
    kinds = ", ".join(f"{kind} {size:.2f}" for kind, size in made.memory.items())
    print(f"memory       {made.total_memory:.2f} GB a device: {kinds}")
    types = ", ".join(f"{name} {n:.3g}" for name, n in made.operations.items())
    print(f"operations   {made.operations_a_pair:.3g} TFLOP a pair; of a device's step, TFLOP: {types}")
    if made.communication:
        print(f"exchange     {made.communication:.2f} GB sent by a device in a step")
    hardware, least = made.hardware, made.bounds
    if hardware is None or least is None:
        return
    print(
        f"step         at least {least.step:.3g} s on {hardware.count} x {hardware.name}: arithmetic "
        f"{least.arithmetic:.3g}, memory traffic {least.traffic:.3g}, operator by operator "
        f"{least.operators:.3g}; photos {least.data:.3g} of one core"
    )
    if made.days is not None and made.steps is not None:
        cost = "" if made.cost is None else f", ${made.cost:,.0f}"
        pairs = made.steps * made.pairs
        print(f"run          {made.steps:,} steps, {pairs:,} pairs: at least {made.days:.3g} days{cost}")
    usable = USABLE * hardware.memory
    room = f"{made.total_memory:.1f} of {usable:.1f} GB ({USABLE:.0%} of {hardware.memory:g})"
    print(f"it fits      {room}" if made.fits else f"too large    {room}")
    for advice in made.advice:
        print(
            f"  {advice.change}: {advice.memory_gb:.1f} GB, {1e3 * advice.seconds:.3g} ms a pair; "
            f"{advice.cost}" + (" -> fits" if advice.fits and not made.fits else "")
        )
    if not made.fits and not any(a.fits for a in made.advice):
        least_memory = made.advice[-1].memory_gb if made.advice else made.total_memory
        print(f"  no change is enough: devices of {least_memory / USABLE:.0f} GB are needed")
