"""The training loop: one recipe in, one model folder out; resumes by itself.

Step n is a function of the weights after step n - 1, the seed and n alone, so a killed run that is started
again ends with the same weights as one that was never interrupted (bitwise on one CPU machine). Started by
``torchrun`` it is the same loop on every process: each takes its part of a batch, and the main one writes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmgem.checkpoints.initialize import init_network
from mmgem.checkpoints.model_card import model_card
from mmgem.checkpoints.model_folder import build, save_model
from mmgem.checkpoints.model_lock import RUN_LOCK
from mmgem.config import Recipe, to_dict
from mmgem.data.tokens import Tokenizer
from mmgem.distributed.world import SINGLE_PROCESS, World, init_world
from mmgem.errors import BusyError, ConfigError, StoppedError
from mmgem.models.network import MMGEMNetwork
from mmgem.tasks.base import Task
from mmgem.train.checks import check, check_compiler
from mmgem.train.engine import Engine, tf32
from mmgem.train.log import MetricsLogger
from mmgem.train.optim import (
    ExponentialMovingAverage,
    build_optimizer,
    configure_trainable,
    lr_multiplier,
    merge_lora,
)
from mmgem.train.state import CheckpointWriter, load_state, take_snapshot
from mmgem.train.step import accumulate_gradients
from mmgem.train.stop_request import StopRequest
from mmgem.train.throughput import ThroughputMeter
from mmgem.utils.heap import trim_heap
from mmgem.utils.locks import FileLock
from mmgem.utils.progress import Meter

_TRIM_EVERY = 16
"""Steps; a trim costs what a step's memory costs to be had again, a second of some hundreds."""


@dataclass
class Run:
    """Everything a step touches."""

    recipe: Recipe
    world: World
    engine: Engine
    tokenizer: Tokenizer
    tasks: list[Task[Any]]
    optimizer: torch.optim.AdamW
    ema: ExponentialMovingAverage | None
    total: int

    @property
    def network(self) -> MMGEMNetwork:
        """The network that trains; on several processes its parameters may be shards."""
        return self.engine.network

    @property
    def data(self) -> str:
        """What tells the data of a run from others: a word a task."""
        return " ".join(task.batches.fingerprint for task in self.tasks)

    @property
    def evaluates(self) -> bool:
        """Whether there is anything to measure it on."""
        return any(task.evaluates for task in self.tasks)


def train(recipe: Recipe) -> Path:
    """Run ``recipe`` to its end and return the folder of the model it chose.

    Raises ``ConfigError``, ``DataError`` or ``CheckpointError`` before the first step where it can;
    ``BusyError`` at once if another process trains into ``train.out``; ``StoppedError`` where SIGTERM came
    to one of the processes: after the step it came in, which is saved.
    """
    # Gradients run into denormal numbers, which cost CPUs a hundred times more; before any worker thread. It
    # holds for the whole process, so it is undone: a caller's own arithmetic is none of our business.
    torch.set_flush_denormal(True)
    try:
        with init_world(recipe.train.device) as world, tf32(world.device):
            return _train(recipe, world)
    finally:
        torch.set_flush_denormal(False)


@contextmanager
def lock_run(out: Path, world: World) -> Iterator[None]:
    """Hold the folder of a run, on every process. Raises ``BusyError`` on each if another run has it."""
    lock, holder, new = None, None, False
    if world.is_main_process:
        new = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(out / RUN_LOCK, out)
        except BusyError as error:
            holder = error.holder
    if (holder := world.broadcast(holder)) is not None:
        raise BusyError(f"train.out: {holder} is training into {out}; wait, or set another", holder)
    try:
        yield
    finally:
        if lock is not None:
            lock.close()
            if new:  # nothing came of it
                with suppress(OSError):
                    out.rmdir()


def _train(recipe: Recipe, world: World) -> Path:
    tasks = check(recipe, world)
    with lock_run(recipe.train.out, world):
        return _train_locked(recipe, world, tasks)


def _train_locked(recipe: Recipe, world: World, tasks: list[Task[Any]]) -> Path:
    run = prepare(recipe, world, tasks)
    plain = to_dict(recipe)
    out = recipe.train.out
    state = load_state(out / "checkpoints", run.network, run.optimizer, run.ema, recipe, world)
    first_step = state["step"] if state else 0
    data = run.data
    if state:
        _check_data(run, state)
    best, before = (state["best"], state.get("before")) if state else (None, None)
    log = MetricsLogger(out, first_step, recipe.train.trackers) if world.is_main_process else None
    every = recipe.train.evaluate_every
    throughput = ThroughputMeter(world, recipe.train.precision)
    meter, writer = (
        Meter("training", run.total, first_step, " pairs", world.is_main_process),
        CheckpointWriter(out / "checkpoints"),
    )
    stopped_at = None
    with meter, writer, StopRequest() as request:
        if state is None and recipe.init.checkpoint is not None and run.evaluates:
            before = evaluate_tasks(run)
            if log:
                log.write(0, before)
            meter.say(0, before)
        for step in range(first_step, run.total):
            with throughput.time_step(count=step == first_step):
                values, pairs = train_step(run, step, throughput)
            meter.advance(1, pairs, values)
            done_steps = step + 1
            if done_steps % _TRIM_EVERY == 0:
                trim_heap()
            last = done_steps == run.total
            if log and (done_steps % recipe.train.log_every == 0 or last):
                throughput_metrics = {"pairs_per_second": round(meter.rate, 1), **throughput.metrics()}
                log.write(done_steps, {**values, **throughput_metrics})
            if run.evaluates and (last or (every and done_steps % every == 0)):
                scores = evaluate_tasks(run)
                if log:
                    log.write(done_steps, scores)
                meter.say(done_steps, scores)
                if best is None or scores["score"] > best["score"]:
                    best = {"step": done_steps, **scores}
                    export_model(run, out / "model", best)
            if any(world.all_reduce_sum(request.asked)) and not last:
                stopped_at = done_steps
            if done_steps % recipe.train.checkpoint_every == 0 or last or stopped_at is not None:
                if log:
                    log.sync()
                writer.save(
                    done_steps,
                    lambda: take_snapshot(run.network, run.optimizer, run.ema, world),
                    {"recipe": plain, "best": best, "before": before, "data": data},
                    recipe.train.keep_checkpoints,
                )
            if stopped_at is not None:
                break
    for task in run.tasks:
        for problem in task.close():
            meter.note(problem)
    if stopped_at is not None:
        if log:
            log.close()
        raise StoppedError(f"{out}: stopped by SIGTERM; step {stopped_at} is saved, the same command goes on")
    if before is not None and best is not None:
        meter.note(gain(before, best))
    if not run.evaluates and (first_step < run.total or not world.broadcast((out / "model").is_dir())):
        export_model(run, out / "model", {"step": run.total})
    if log:
        log.close()
    world.barrier()
    return out / "model"


def gain(before: dict[str, Any], after: dict[str, Any]) -> str:
    """What a model scored before it was trained and scores after, a figure a part: ``held out, before ->
    after: t2i R@10 40.0 -> 50.0``; says so where it is not better as a whole."""
    old, new = flat_scores(before), flat_scores(after)
    parts = [f"{name} {old[name]:.1f} -> {new[name]:.1f}" for name in old if name in new]
    worse = after["score"] <= before["score"]
    warning = "; no better than init.checkpoint, which goes on being the better choice" if worse else ""
    return f"held out, before -> after: {', '.join(parts)}{warning}"


def flat_scores(scores: dict[str, Any], before: str = "") -> dict[str, float]:
    """The numbers of nested ``scores`` by the names on the way to them, with spaces between."""
    flat: dict[str, float] = {}
    for name, value in scores.items():
        if isinstance(value, dict):
            flat |= flat_scores(value, f"{before}{name} ")
        elif name != "step":
            flat[f"{before}{name}"] = float(value)
    return flat


def _check_data(run: Run, state: dict[str, Any]) -> None:
    """Refuse to go on with other data than the run began with."""
    started_with, present = str(state.get("data")).split(" "), run.data.split(" ")
    if started_with != present:
        pairs = zip(run.tasks, [*started_with, *run.tasks], present, strict=False)
        changed = next((task for task, before, word in pairs if before != word), run.tasks[0])
        raise ConfigError(
            f"{changed.data_key}: this is not the data the run began with; bring it back, or set another "
            "train.out"
        )


def prepare(recipe: Recipe, world: World = SINGLE_PROCESS, tasks: list[Task[Any]] | None = None) -> Run:
    """Read the data, fill the feature cache, build network and optimiser. ``tasks``: those of the recipe, if
    it has been checked."""
    if tasks is None:
        tasks = check(recipe, world)
    if recipe.train.compile and world.device.type == "cpu":
        check_compiler()
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    for task in tasks:  # before base weights are fetched for nothing
        task.check_files()
    network, tokenizer = init_network(recipe)
    for task in tasks:
        task.prepare(network, tokenizer, world)
    groups = configure_trainable(network, recipe.optim, recipe.data.cached)
    engine = Engine(network, recipe.train, world, recipe.optim.lora_rank)
    optim, ema = recipe.optim, None
    if optim.ema_decay:
        ema = ExponentialMovingAverage(network, optim.ema_decay, optim.start_share)
    total = recipe.train.total_steps(tasks[0].batches.per_epoch)
    adamw = build_optimizer(network, groups, recipe.optim)
    return Run(recipe, world, engine, tokenizer, tasks, adamw, ema, total)


def mixed_seed(*parts: int) -> int:
    """One seed of several numbers; torch's generator on the CPU looks at 32 bits only."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def train_step(
    run: Run, step: int, throughput: ThroughputMeter | None = None
) -> tuple[dict[str, float], int]:
    """Forward, backward and update of ``step``; returns the numbers to log and the pairs of all
    processes."""
    config, world = run.recipe.optim, run.world
    seeds = (run.recipe.train.seed, step) + ((world.rank,) if world.size > 1 else ())
    run.network.train()
    torch.manual_seed(mixed_seed(*seeds))
    factor = lr_multiplier(step, run.total, config)
    for group in run.optimizer.param_groups:
        group["lr"] = group["base"] * factor
    run.optimizer.zero_grad()
    started = time.monotonic()
    work = [(task, task.load_batch(step, world.device)) for task in run.tasks]
    if throughput is not None:
        throughput.add_data_wait(time.monotonic() - started)
    chunk_size = run.recipe.train.grad_cache_chunk_size
    losses = accumulate_gradients(
        run.engine, work, chunk_size, lambda n: mixed_seed(*seeds, 7, n), f"step {step}"
    )
    norm = run.engine.clip_grad_norm(config.max_grad_norm)
    run.optimizer.step()
    if run.network.logit_scale.requires_grad:
        with torch.no_grad():
            run.network.logit_scale.clamp_(max=config.max_logit_scale_log)
    if run.ema is not None:
        run.ema.update(run.network, step)
    values = {name: round(value, 5) for name, value in losses.items()}
    values["gradient_norm"] = round(norm, 4)
    values["temperature"] = round(1 / run.network.logit_scale.exp().item(), 5)
    values["lr_factor"] = round(factor, 5)
    pairs = sum(task.pairs(batch) for task, batch in work)
    return values, int(world.all_reduce_sum(pairs)[0])


@contextmanager
def ema_weights(run: Run) -> Iterator[None]:
    """The averaged weights, if there are, in the place of the current ones."""
    if run.ema is not None:
        run.ema.swap_weights(run.network)
    try:
        yield
    finally:
        if run.ema is not None:
            run.ema.swap_weights(run.network)


def evaluate_tasks(run: Run) -> dict[str, Any]:
    """Scores of the averaged (or current) weights on what tasks held out, the same on every process;
    ``score`` is the mean of theirs."""
    with ema_weights(run):
        network = run.engine.full_network()
        scores: dict[str, Any] = {}
        if network is not None:
            network.eval()
            parts: list[float] = []
            for task in run.tasks:
                if task.evaluates:
                    scores |= task.evaluate(network)
                    parts.append(scores.pop("score"))
            scores["score"] = sum(parts) / len(parts)
    return run.world.broadcast(scores)


def export_model(run: Run, folder: Path, results: dict[str, Any]) -> None:
    """Write the model folder with the averaged (or current) weights, adapters merged."""
    with ema_weights(run):
        network = run.engine.full_network()
        if network is None:
            return
        if run.recipe.optim.lora_rank:
            adapted, network = network, build(network.config)
            network.load_state_dict(merge_lora(adapted.state_dict(), adapted))
        exported = network.eval()

        def write_tasks(new: Path) -> None:
            for task in run.tasks:
                task.export(exported, new)

        save_model(folder, network, run.tokenizer, model_card(run.recipe, results), more=write_tasks)
