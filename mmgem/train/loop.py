"""The training loop: one recipe in, one model folder out; resumes by itself.

Step n is a function of the weights after step n - 1, the seed and n alone, so a killed run that is started
again ends with the same weights as one that was never interrupted (bitwise on one CPU machine).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmgem.config import Preprocessing, Recipe, to_dict
from mmgem.data.batches import Batches, distinct_texts
from mmgem.data.features import FeatureCache, Joined, PixelSource, Source, cache_features, image_identity
from mmgem.data.mosaics import FILE as MOSAICS
from mmgem.data.mosaics import make_mosaics
from mmgem.data.readers import load_dataset
from mmgem.data.records import Record, read_jsonl
from mmgem.data.tokens import Tokenizer
from mmgem.errors import ConfigError, DataError, UsageError
from mmgem.files import cache_home
from mmgem.models.checkpoint import build, save_model
from mmgem.models.network import MMGEMNetwork
from mmgem.objectives import OBJECTIVES, naming, reading
from mmgem.progress import Meter
from mmgem.train.card import card
from mmgem.train.corpus import CorpusSide, corpus_side, evaluate_corpus
from mmgem.train.evaluate import evaluate
from mmgem.train.log import Log
from mmgem.train.optim import Average, learning_rate, merge_lora, optimizer, trainable
from mmgem.train.start import start
from mmgem.train.state import load_state, save_state
from mmgem.train.teacher import embed_captions


@dataclass
class Run:
    """Everything a step touches."""

    recipe: Recipe
    network: MMGEMNetwork
    tokenizer: Tokenizer
    batches: Batches | None
    corpus: CorpusSide | None
    dev: tuple[list[Record], FeatureCache | PixelSource] | None
    optimizer: torch.optim.AdamW
    average: Average | None
    total: int

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
        return _train(recipe)
    finally:
        torch.set_flush_denormal(False)


def _train(recipe: Recipe) -> Path:
    if recipe.train.threads:
        torch.set_num_threads(recipe.train.threads)
    run = prepare(recipe)
    plain = to_dict(recipe)
    out = recipe.train.out
    state = load_state(out / "checkpoints", run.network, run.optimizer, run.average, plain)
    done = state["step"] if state else 0
    best = state["best"] if state else None
    facts = {"recipe": plain}
    log = Log(out, done, recipe.train.tensorboard)
    every = recipe.train.evaluate_every
    with Meter("training", run.total, done, unit=" pairs") as meter:
        for step in range(done, run.total):
            values, pairs = one_step(run, step)
            meter.advance(1, pairs, values)
            finished = step + 1
            last = finished == run.total
            if finished % recipe.train.log_every == 0 or last:
                log.write(finished, {**values, "pairs_per_second": round(meter.rate, 1)})
            if run.scored and (last or (every and finished % every == 0)):
                scores = measure(run)
                log.write(finished, scores)
                meter.say(finished, scores)
                if best is None or scores["score"] > best["score"]:
                    best = {"step": finished, **scores}
                    export(run, out / "model", best)
            if finished % recipe.train.checkpoint_every == 0 or last:
                done_facts = {**facts, "best": best}
                keep = recipe.train.keep
                save_state(
                    out / "checkpoints", finished, run.network, run.optimizer, run.average, done_facts, keep
                )
    if not run.scored:
        export(run, out / "model", {"step": run.total})
    return out / "model"


def prepare(recipe: Recipe) -> Run:
    """Read the data, fill the feature cache, build network and optimiser."""
    network, tokenizer = start(recipe)
    batches, dev = None, None
    if recipe.data.train is not None:
        batches, dev = _images(recipe, recipe.data.train, network, tokenizer)
    corpus = corpus_side(recipe, network, tokenizer) if recipe.corpus.passages else None
    groups = trainable(network, recipe.optim, recipe.data.cached)
    network.llm.training_dtype = getattr(torch, recipe.train.precision)
    average = Average(network, recipe.optim.ema) if recipe.optim.ema else None
    walked = batches or (corpus.batches if corpus else None)
    assert walked is not None
    total = max(1, round(recipe.train.epochs * walked.per_epoch))
    trained = optimizer(network, groups, recipe.optim)
    return Run(recipe, network, tokenizer, batches, corpus, dev, trained, average, total)


def _images(
    recipe: Recipe, train: Path, network: MMGEMNetwork, tokenizer: Tokenizer
) -> tuple[Batches, tuple[list[Record], FeatureCache | PixelSource] | None]:
    """Training batches of images and boxes, and the dev images with their features."""
    for field in ("mosaics", "region_size"):
        if getattr(recipe.data, field) and not recipe.data.region_share:
            raise ConfigError(f"data.{field}: counts only if data.region_share is above 0")
    boxed = recipe.data.region_share > 0
    records = _described(train, recipe.data.split, "data.train", "data.split", boxed)
    whole = network.config.tower.kind == "transformers" or network.config.tower.cut is None
    if recipe.optim.lr_tower > 0 and recipe.data.cached and whole:
        raise ConfigError(
            "optim.lr_tower: a cached tower trains only above model.tower.cut (EfficientNet); set that, or "
            "data.cached = false"
        )
    source = image_source(recipe, network, tokenizer.prep, records, recipe.data.views)
    box_records, box_source = _boxed(recipe, network, tokenizer.prep, records, source)
    dev = None
    if recipe.data.dev or recipe.data.dev_split:
        dev_data = recipe.data.dev or train
        held_out = _described(dev_data, recipe.data.dev_split, "data.dev", "data.dev_split")
        held_out = held_out[: recipe.train.evaluate_images]
        dev = (held_out, image_source(recipe, network, tokenizer.prep, held_out, 1))
    texts = distinct_texts(records + box_records)
    teacher = embed_captions(recipe, texts) if recipe.objective.soft_targets else None
    size, seed = recipe.train.batch, recipe.train.seed
    regions = (box_records, box_source)
    batches = Batches(records, source, tokenizer, recipe.data, size, seed, teacher, regions)
    return batches, dev


def _described(
    path: Path, split: str | None, field: str, split_field: str, regions: bool = False
) -> list[Record]:
    """Records with captions (or ``regions``) of ``split`` (none, or "" in a recipe: all); the ``field`` names
    are those of the recipe, for errors."""
    if not path.exists():
        raise ConfigError(f"{field}: {path}: No such file")
    try:
        records = load_dataset(path, split=split or None)
    except UsageError as error:
        raise ConfigError(f'{split_field}: {error} ("" for none)') from error
    kept = [r for r in records if r.captions or (regions and r.regions)]
    if not kept:
        raise DataError(f"{path}: no captions in split {split!r}")
    return kept


def _boxed(
    recipe: Recipe,
    network: MMGEMNetwork,
    prep: Preprocessing,
    records: list[Record],
    source: FeatureCache | PixelSource,
) -> tuple[list[Record], Source]:
    """What boxes are taken from: the ``records`` that have some, and canvases, made unless the cache has
    them."""
    data = recipe.data
    if not data.region_share:
        return [], source
    own = [r for r in records if any(region.captions for region in r.regions)]
    parts: list[FeatureCache | PixelSource] = []
    sizes: list[int] = []
    if own and data.region_size in (0, prep.size):
        own, parts, sizes = records, [source], [len(records)]
    prep = dataclasses.replace(prep, size=data.region_size or prep.size)
    if own and not parts:
        parts, sizes = [image_source(recipe, network, prep, own, data.views)], [len(own)]
    if data.mosaics:
        photos = [records[i] for i in source.valid]
        facts = [prep.size, data.mosaics, recipe.train.seed, *(image_identity(r.image) for r in photos)]
        name = hashlib.blake2b(json.dumps(facts).encode(), digest_size=12).hexdigest()
        folder = (data.cache or cache_home() / "features").parent / "mosaics" / name
        if not (folder / MOSAICS).is_file():
            make_mosaics(photos, folder, data.mosaics, recipe.train.seed, prep.size)
        canvases = read_jsonl(folder / MOSAICS)
        parts.append(image_source(recipe, network, prep, canvases, data.mosaic_views))
        sizes.append(len(canvases))
        own = own + canvases
    if not parts:
        raise DataError(
            f"data.region_share: {data.train} has no region with a caption, and data.mosaics is 0"
        )
    return own, parts[0] if len(parts) == 1 else Joined(parts, sizes)


def image_source(
    recipe: Recipe, network: MMGEMNetwork, prep: Preprocessing, records: list[Record], views: int
) -> FeatureCache | PixelSource:
    """Cached features of ``records``, or their pixels where the whole tower trains; says what it skips."""
    paths = [r.image for r in records]
    scale = recipe.data.crop_scale
    source: FeatureCache | PixelSource
    if recipe.data.cached:
        folder = recipe.data.cache or cache_home() / "features"
        source = cache_features(network.tower.eval(), prep, paths, folder, views, scale)
    else:
        source = PixelSource(paths, prep, views, scale)
    if source.problems:
        skipped = f"{len(source.problems)} of {len(paths)} images skipped; the first: {source.problems[0]}"
        print(skipped, file=sys.stderr)
    return source


def mixed_seed(*parts: int) -> int:
    """One seed of several numbers; torch's generator on the CPU looks at 32 bits only."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def one_step(run: Run, step: int) -> tuple[dict[str, float], int]:
    """Forward, backward and update of ``step``; returns the numbers to log and the pairs seen."""
    config = run.recipe.optim
    run.network.train()
    torch.manual_seed(mixed_seed(run.recipe.train.seed, step))
    factor = learning_rate(step, run.total, config)
    for group in run.optimizer.param_groups:
        group["lr"] = group["base"] * factor
    run.optimizer.zero_grad()
    losses: dict[str, torch.Tensor] = {}
    pairs = 0
    # One part's activations at a time: gradients add up, memory does not.
    for part, count in _losses(run, step):
        loss = torch.stack(list(part.values())).sum()
        if not torch.isfinite(loss):
            raise DataError(f"step {step}: the loss is {loss.item()}; lower the learning rates")
        loss.backward()
        losses |= {name: value.detach() for name, value in part.items()}
        pairs += count
    norm = torch.nn.utils.clip_grad_norm_(
        [p for p in run.network.parameters() if p.requires_grad], config.clip
    )
    run.optimizer.step()
    with torch.no_grad():
        run.network.logit_scale.clamp_(max=run.recipe.objective.max_logit_scale_log)
    if run.average is not None:
        run.average.update(run.network, step)
    values = {name: round(value.item(), 5) for name, value in losses.items()}
    values["gradient_norm"] = round(norm.item(), 4)
    values["temperature"] = round(1 / run.network.logit_scale.exp().item(), 5)
    values["lr_factor"] = round(factor, 5)
    return values, pairs


def _losses(run: Run, step: int) -> Iterator[tuple[dict[str, torch.Tensor], int]]:
    """The losses of images, then of what is named and what is read of the corpus, as far as there are, with
    the number of pairs."""
    config = run.recipe.objective
    if run.batches is not None:
        batch = run.batches[step]
        if batch.pixels is not None:
            batch.features = run.network.tower.lower(batch.pixels)
        if batch.box_pixels is not None:
            batch.box_features = run.network.tower.lower(batch.box_pixels)
        yield OBJECTIVES[config.name](run.network, batch, config), len(batch.texts)
    if run.corpus is not None:
        texts = run.corpus.batches[step]
        if config.retrieve_weight and texts.names:
            yield naming(run.network, texts, config), len(texts.names)
        if texts.reads and (read := reading(run.network, texts, config)):
            yield read, 0


def measure(run: Run) -> dict[str, Any]:
    """Scores of the averaged (or current) weights on the dev images and queries; ``score`` is the mean of
    theirs."""
    if run.average is not None:
        run.average.swap(run.network)
    try:
        network = run.network.eval()
        scores: dict[str, Any] = {}
        parts: list[float] = []
        if run.dev is not None:
            scores |= evaluate(network, run.tokenizer, *run.dev, run.recipe.objective.name)
            parts.append(scores["score"])
        if run.corpus is not None and run.corpus.dev:
            found = evaluate_corpus(network, run.corpus)
            scores |= found
            parts.append(found["H@1"])
        return {**scores, "score": sum(parts) / len(parts)}
    finally:
        if run.average is not None:
            run.average.swap(run.network)


def export(run: Run, folder: Path, facts: dict[str, Any]) -> None:
    """Write the model folder with the averaged (or current) weights, adapters merged."""
    if run.average is not None:
        run.average.swap(run.network)
    try:
        network = run.network
        if run.recipe.optim.lora_rank:
            network = build(run.network.config)
            network.load_state_dict(merge_lora(run.network.state_dict(), run.network))
        more = run.corpus.written(network.eval()) if run.corpus else None
        save_model(folder, network, run.tokenizer, card(run.recipe, facts), more=more)
    finally:
        if run.average is not None:
            run.average.swap(run.network)
