"""The training loop: one recipe in, one model folder out; resumes by itself.

Step n is a function of the weights after step n - 1, the seed and n alone, so a killed run that is started
again ends with the same weights as one that was never interrupted (bitwise on one CPU machine). Started by
``torchrun`` it is the same loop on every rank: each takes its part of a batch, and the first one writes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmgem.checkpoints.initialize import start
from mmgem.checkpoints.model_card import card
from mmgem.checkpoints.model_folder import build, save_model
from mmgem.config import Recipe, to_dict
from mmgem.data.batches import Batches
from mmgem.data.features import FeatureCache, PixelSource
from mmgem.data.records import Record
from mmgem.data.shards.ahead import Ahead
from mmgem.data.tokens import Tokenizer
from mmgem.distributed.world import SINGLE_PROCESS, World, init_world
from mmgem.errors import ConfigError
from mmgem.models.network import MMGEMNetwork
from mmgem.tasks.image_text.data import check_files, image_side
from mmgem.tasks.image_text.evaluation import evaluate
from mmgem.tasks.self_retrieval import CorpusSide, corpus_side, evaluate_corpus
from mmgem.train.checks import check, check_compiler
from mmgem.train.engine import Engine, tf32
from mmgem.train.gradients import corpus_parts, gradients
from mmgem.train.log import Log
from mmgem.train.optim import Average, learning_rate, merge_lora, optimizer, trainable
from mmgem.train.speed import Speed
from mmgem.train.state import Saver, load_state, snapshot
from mmgem.utils.progress import Meter


@dataclass
class Run:
    """Everything a step touches."""

    recipe: Recipe
    world: World
    engine: Engine
    tokenizer: Tokenizer
    batches: Batches | Ahead | None
    corpus: CorpusSide | None
    dev: tuple[list[Record], FeatureCache | PixelSource] | None
    optimizer: torch.optim.AdamW
    average: Average | None
    total: int

    @property
    def network(self) -> MMGEMNetwork:
        """The network that trains; on several ranks its parameters may be shards."""
        return self.engine.network

    @property
    def data(self) -> str:
        """What tells the data of a run from others."""
        sides = (self.batches, self.corpus.batches if self.corpus is not None else None)
        return " ".join(side.fingerprint for side in sides if side is not None)

    @property
    def scored(self) -> bool:
        """Whether there is anything to measure it on."""
        return self.dev is not None or (self.corpus is not None and bool(self.corpus.dev))


def train(recipe: Recipe) -> Path:
    """Run ``recipe`` to its end and return the folder of the model it chose.

    Raises ``ConfigError``, ``DataError`` or ``CheckpointError`` before the first step where it can.
    """
    # Gradients run into denormal numbers, which cost CPUs a hundred times more; before any worker thread. It
    # holds for the whole process, so it is undone: a caller's own arithmetic is none of our business.
    torch.set_flush_denormal(True)
    try:
        with init_world(recipe.train.device) as world, tf32(world.device):
            return _train(recipe, world)
    finally:
        torch.set_flush_denormal(False)


def _train(recipe: Recipe, world: World) -> Path:
    run = prepare(recipe, world)
    plain = to_dict(recipe)
    out = recipe.train.out
    state = load_state(out / "checkpoints", run.network, run.optimizer, run.average, plain, world)
    done = state["step"] if state else 0
    data = run.data
    if state and state.get("data") != data:
        field = "data.train" if recipe.data.train is not None else "corpus"
        raise ConfigError(
            f"{field}: this is not the data the run began with; bring it back, or set another train.out"
        )
    best = state["best"] if state else None
    log = Log(out, done, recipe.train.trackers) if world.first else None
    every = recipe.train.evaluate_every
    speed = Speed(world, recipe.train.precision)
    meter, saver = Meter("training", run.total, done, " pairs", world.first), Saver(out / "checkpoints")
    with meter, saver:
        for step in range(done, run.total):
            with speed.measured(count=step == done):
                values, pairs = one_step(run, step, speed)
            meter.advance(1, pairs, values)
            finished = step + 1
            last = finished == run.total
            if log and (finished % recipe.train.log_every == 0 or last):
                facts = {"pairs_per_second": round(meter.rate, 1), **speed.facts()}
                log.write(finished, {**values, **facts})
            if run.scored and (last or (every and finished % every == 0)):
                scores = measure(run)
                if log:
                    log.write(finished, scores)
                meter.say(finished, scores)
                if best is None or scores["score"] > best["score"]:
                    best = {"step": finished, **scores}
                    export(run, out / "model", best)
            if finished % recipe.train.checkpoint_every == 0 or last:
                saver.save(
                    finished,
                    lambda: snapshot(run.network, run.optimizer, run.average, world),
                    {"recipe": plain, "best": best, "data": data},
                    recipe.train.keep_checkpoints,
                )
    if isinstance(run.batches, Ahead):
        run.batches.close()
        for problem in run.batches.problems:
            meter.note(problem)
    if not run.scored and (done < run.total or not world.broadcast((out / "model").is_dir())):
        export(run, out / "model", {"step": run.total})
    if log:
        log.close()
    world.wait()
    return out / "model"


def prepare(recipe: Recipe, world: World = SINGLE_PROCESS) -> Run:
    """Read the data, fill the feature cache, build network and optimiser."""
    check(recipe, world)
    if recipe.train.compile and world.device.type == "cpu":
        check_compiler()
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    check_files(recipe)  # before base weights are fetched for nothing
    network, tokenizer = start(recipe)
    batches, dev = None, None
    if recipe.data.train is not None:
        batches, dev = image_side(recipe, recipe.data.train, network, tokenizer, world)
    corpus = None
    if recipe.corpus.passages:
        corpus = world.main_process_first(lambda: corpus_side(recipe, network, tokenizer, world))
    groups = trainable(network, recipe.optim, recipe.data.cached)
    engine = Engine(network, recipe.objective, recipe.train, world, recipe.optim.lora_rank)
    average = Average(network, recipe.optim.ema_decay) if recipe.optim.ema_decay else None
    walked = batches or (corpus.batches if corpus else None)
    assert walked is not None
    total = max(1, round(recipe.train.epochs * walked.per_epoch))
    trained = optimizer(network, groups, recipe.optim)
    return Run(recipe, world, engine, tokenizer, batches, corpus, dev, trained, average, total)


def mixed_seed(*parts: int) -> int:
    """One seed of several numbers; torch's generator on the CPU looks at 32 bits only."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def one_step(run: Run, step: int, speed: Speed | None = None) -> tuple[dict[str, float], int]:
    """Forward, backward and update of ``step``; returns the numbers to log and the pairs of all ranks."""
    config, world = run.recipe.optim, run.world
    seeds = (run.recipe.train.seed, step) + ((world.rank,) if world.size > 1 else ())
    run.network.train()
    torch.manual_seed(mixed_seed(*seeds))
    factor = learning_rate(step, run.total, config)
    for group in run.optimizer.param_groups:
        group["lr"] = group["base"] * factor
    run.optimizer.zero_grad()
    waited = time.monotonic()
    parts, pairs = _parts(run, step)
    if speed is not None:
        speed.waited(time.monotonic() - waited)
    chunk = run.recipe.train.grad_cache_chunk_size
    losses = gradients(run.engine, parts, chunk, lambda n: mixed_seed(*seeds, 7, n), f"step {step}")
    norm = run.engine.clip(config.max_grad_norm)
    run.optimizer.step()
    with torch.no_grad():
        run.network.logit_scale.clamp_(max=run.recipe.objective.max_logit_scale_log)
    if run.average is not None:
        run.average.update(run.network, step)
    values = {name: round(value, 5) for name, value in losses.items()}
    values["gradient_norm"] = round(norm, 4)
    values["temperature"] = round(1 / run.network.logit_scale.exp().item(), 5)
    values["lr_factor"] = round(factor, 5)
    return values, int(world.all_reduce_sum(pairs)[0])


def _parts(run: Run, step: int) -> tuple[list[tuple[str, Any]], int]:
    """What this rank sees in ``step``: of images, then of what is named and what is read of the corpus, as
    far as there are; and its number of pairs."""
    config, device = run.recipe.objective, run.world.device
    parts: list[tuple[str, Any]] = []
    pairs = 0
    if run.batches is not None:
        batch = run.batches[step].to(device)
        parts.append(("images", batch))
        pairs += len(batch.texts)
    if run.corpus is not None:
        texts = run.corpus.batches[step]
        found = corpus_parts(texts, config)
        parts += [(what, texts) for what in found]
        pairs += len(texts.names) * ("naming" in found)
    return parts, pairs


@contextmanager
def averaged(run: Run) -> Iterator[None]:
    """The averaged weights, if there are, in the place of the current ones."""
    if run.average is not None:
        run.average.swap(run.network)
    try:
        yield
    finally:
        if run.average is not None:
            run.average.swap(run.network)


def measure(run: Run) -> dict[str, Any]:
    """Scores of the averaged (or current) weights on the dev images and queries, the same on every rank;
    ``score`` is the mean of theirs."""
    with averaged(run):
        network = run.engine.whole()
        scores: dict[str, Any] = {}
        if network is not None:
            network.eval()
            parts: list[float] = []
            if run.dev is not None:
                scores |= evaluate(network, run.tokenizer, *run.dev, run.recipe.objective.name)
                parts.append(scores["score"])
            if run.corpus is not None and run.corpus.dev:
                found = evaluate_corpus(network, run.corpus)
                scores |= found
                parts.append(found["H@1"])
            scores["score"] = sum(parts) / len(parts)
    return run.world.broadcast(scores)


def export(run: Run, folder: Path, facts: dict[str, Any]) -> None:
    """Write the model folder with the averaged (or current) weights, adapters merged."""
    with averaged(run):
        network = run.engine.whole()
        if network is None:
            return
        if run.recipe.optim.lora_rank:
            adapted, network = network, build(network.config)
            network.load_state_dict(merge_lora(adapted.state_dict(), adapted))
        more = run.corpus.written(network.eval()) if run.corpus else None
        save_model(folder, network, run.tokenizer, card(run.recipe, facts), more=more)
