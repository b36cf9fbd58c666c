"""A training step of ours against the plain one, and what each idea contributes.

    python benchmarks/train_step.py [--random] [--data captions.jsonl] [--batch 96] [--repeats 5] [--quick]

Both sides train the same model (EfficientNet-Lite0 and six layers of SmolLM2; --random: random weights,
nothing fetched) on the same captions, and give the same loss to 1e-5, which is asserted. The plain step runs
the encoder from pixels, pads each text to the longest of the data set, runs embedding and captioning as two
passes, and reads the output head at every position over the whole vocabulary. Decoding of the photos is not
counted (the plain side has its pixels in memory), reading the cached features is. The ways take turns, step
by step, in one run; medians are printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from smollm2 import SMOLLM2
from torch import Tensor

from mmgem.checkpoints.initialize import init_network
from mmgem.config import LLMConfig, Preprocessing, Recipe
from mmgem.config.recipe import load_recipe
from mmgem.data.batches import Batch
from mmgem.data.features import FeatureCache
from mmgem.data.tokens import Tokenizer
from mmgem.data.transforms import normalise_text
from mmgem.models.network import MMGEMNetwork
from mmgem.tasks.image_text.captioning import caption_loss
from mmgem.tasks.image_text.config import CaptionConfig, ContrastiveConfig
from mmgem.tasks.image_text.contrastive import contrastive_terms
from mmgem.train.optim import build_optimizer, configure_trainable

ROOT = Path(__file__).parent.parent
IDEAS = ("cached encoder", "packing", "head only where predicted", "sampled vocabulary")


def read_captions(path: Path) -> list[str]:
    """All captions of the file; without it, made-up ones with the lengths Flickr8k has (10.8 +- 3.8 words,
    at most 36)."""
    if path.is_file():
        with path.open(encoding="utf-8") as lines:
            return [caption for line in lines for caption in json.loads(line)["captions"]]
    rng = np.random.default_rng(0)
    lengths = rng.gamma(8.2, 1.32, 35_000).round().clip(1, 36).astype(int)
    lengths[0] = 36
    ranks = rng.zipf(1.3, int(lengths.sum())) % 8000
    words = iter(ranks.tolist())
    return [" ".join(f"w{next(words)}" for _ in range(n)) for n in lengths]


def word_ids(captions: list[str], prep: Preprocessing, vocabulary: int) -> list[Tensor]:
    """A token a word, where there is no tokenizer."""
    seen: dict[str, int] = {}
    return [
        torch.tensor([seen.setdefault(w, 1 + len(seen) % (vocabulary - 1)) for w in form.split()])
        for caption in captions
        if (form := normalise_text(caption, prep).strip())
    ]


class Case:
    """One model, one batch, and the ways to take a step on it."""

    def __init__(self, network: MMGEMNetwork, recipe: Recipe, texts: list[Tensor], end: int, size: int):
        self.network, self.config = network.train(), recipe.optim
        self.longest = max(len(t) for t in texts)
        rng = np.random.default_rng(0)
        chosen = [texts[i] for i in rng.choice(len(texts), size, replace=False)]
        side = network.encoder.size
        self.pixels = torch.randn(size, 3, side, side, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            self.exact = network.encoder.frozen_stem(self.pixels)
        self.cache = FeatureCache([self.exact.half().numpy()], list(range(size)), [])
        owner, one = torch.arange(size), torch.tensor([end])
        self.batch = Batch(
            features=self.exact,
            texts=chosen,
            text_owner=owner,
            captions=chosen,
            caption_owner=owner,
            caption_targets=torch.cat([t for ids in chosen for t in (ids, one)]),
            vocabulary=torch.cat([*texts, one]).unique(),
        )
        self.optimizer = build_optimizer(
            network, configure_trainable(network, recipe.optim, cached=True), recipe.optim
        )

    def losses(self, ideas: tuple[str, ...], exact: bool = False) -> Tensor:
        """The joint loss with some ideas; ``exact``: features as computed, not rounded by the cache."""
        network, batch = self.network, self.batch
        if "cached encoder" not in ideas:
            features = network.encoder.frozen_stem(self.pixels)
        elif exact:
            features = self.exact
        else:
            features = self.cache.read(range(len(self.pixels)), [0] * len(self.pixels))
        visual = network.encode_image(network.encoder.trainable_head(features))
        prefixes = network.project_visual_prefix(visual)
        if "packing" in ideas:
            texts, predicted, states, at = self._packed(prefixes, "head only where predicted" not in ideas)
        else:
            texts, states, at = self._padded(prefixes)
            predicted = states[at]
        if "head only where predicted" in ideas:
            config = CaptionConfig(sampled_softmax=2048 if "sampled vocabulary" in ideas else 0)
            generation = caption_loss(network, predicted, batch, config)
        else:
            labels = torch.full((len(states),), -100)
            labels[at] = batch.caption_targets
            generation = F.cross_entropy(network.llm.logits(states), labels, ignore_index=-100)
        terms = contrastive_terms(network, visual[:, 0], texts, batch, ContrastiveConfig())
        return terms["contrastive_loss"] + generation

    def step(self, ideas: tuple[str, ...]) -> float:
        """Seconds of one whole step: forward, backward, update."""
        began = time.perf_counter()
        loss = self.losses(ideas)
        self.optimizer.zero_grad()
        loss.backward()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self.config.max_grad_norm)
        self.optimizer.step()
        return time.perf_counter() - began

    def _padded(self, prefixes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Two passes, every text padded to the longest there is. Padding comes last, so that under a causal
        mask nothing looks at it. Returns the text embeddings, all caption states ``(T, H)``, and which of
        them predict, caption by caption."""
        network, texts = self.network, self.batch.texts
        count, head = len(texts), network.prefix_length + 1
        ids = torch.zeros(count, self.longest, dtype=torch.long)
        for row, tokens in enumerate(texts):
            ids[row, : len(tokens)] = tokens
        lengths, rows = torch.tensor([len(t) for t in texts]), torch.arange(count)
        tokens = network.llm.embed(ids)
        reading = torch.cat([tokens, torch.zeros_like(tokens[:, :1])], 1)
        reading = reading.index_put((rows, lengths), network.emb_token.expand(count, -1))
        embedded = network.text_projection(network.llm(reading, self._positions(reading))[rows, lengths])
        writing = torch.cat([prefixes, network.cap_token.expand(count, 1, -1), tokens], 1)
        states = network.llm(writing, self._positions(writing))
        predicts = torch.arange(self.longest + 1) <= lengths[:, None]
        at = (rows[:, None] * writing.shape[1] + head - 1 + torch.arange(self.longest + 1))[predicts]
        return embedded, states.flatten(0, 1), at

    def _packed(self, prefixes: Tensor, everywhere: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One packed pass. ``everywhere``: also all its states ``(T, H)`` and which of them predict."""
        network, texts = self.network, self.batch.texts
        output = network.forward_packed(
            [*network.text_segments(texts), *network.caption_segments(texts, prefixes)]
        )
        if not everywhere:
            return output.embeddings, output.prediction_states, prefixes[:0], torch.empty(0)
        count, head = len(texts), network.prefix_length + 1
        lengths = torch.tensor([len(t) for t in texts])
        starts, captions = torch.full((count,), head - 1), torch.arange(count, 2 * count)
        predicting = output.packing.span(starts, lengths + 1, captions)
        return output.embeddings, output.prediction_states, output.hidden_states, predicting

    @staticmethod
    def _positions(inputs: Tensor) -> Tensor:
        return torch.arange(inputs.shape[1]).expand(len(inputs), -1)


def make(options: argparse.Namespace) -> Case:
    """The model and the data of the command line."""
    recipe = load_recipe(ROOT / "recipes" / "tiny.toml", ["model.dropout=0.0"])
    captions = read_captions(options.data)
    torch.manual_seed(0)
    if options.random or options.quick:
        config = dataclasses.replace(recipe.model, llm=LLMConfig(dict(SMOLLM2)))
        if options.quick:
            small = {"vocab_size": 9000, "hidden_size": 72, "intermediate_size": 96, "num_hidden_layers": 2}
            config.llm.config |= small
            config.encoder = dataclasses.replace(config.encoder, config={"size": 64})
        network, end = MMGEMNetwork(config), 0
        ids = word_ids(captions, recipe.preprocessing, network.llm.vocabulary)
    else:
        network, tokenizer = init_network(recipe)
        assert isinstance(tokenizer, Tokenizer)
        ids, end = tokenizer.encode_all(captions), tokenizer.end
    return Case(network, recipe, ids, end, options.batch)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = ROOT.parent / "shared" / "data" / "flickr8k" / "captions.jsonl"
    parser.add_argument("--data", type=Path, default=default, help="captions, a line an image")
    parser.add_argument("--random", action="store_true", help="random weights, a token a word")
    parser.add_argument("--batch", type=int, default=96, help="images and captions in a step")
    parser.add_argument("--repeats", type=int, default=5, help="steps of each way")
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    parser.add_argument("--quick", action="store_true", help="a toy model and batch, to see that it runs")
    options = parser.parse_args()
    if options.quick:
        options.batch, options.repeats = min(options.batch, 8), min(options.repeats, 2)
    if options.threads:
        torch.set_num_threads(options.threads)
    case = make(options)

    ways: dict[str, tuple[str, ...]] = {"plain": ()}
    ways |= {f"  + {IDEAS[i]}": IDEAS[: i + 1] for i in range(len(IDEAS))}
    ways |= {f"  {idea} alone": (idea,) for idea in IDEAS[1:3]}
    with torch.no_grad():
        plain = case.losses(()).item()
        for name, ideas in ways.items():
            if IDEAS[3] in ideas:
                continue
            loss = case.losses(ideas, exact=True).item()
            assert abs(loss - plain) <= 1e-5 * abs(plain), f"{name}: loss {loss}, plain {plain}"
    times: dict[str, list[float]] = {name: [] for name in ways}
    for ideas in ways.values():  # first steps allocate
        case.step(ideas)
    for _ in range(options.repeats):
        for name, ideas in ways.items():
            times[name].append(case.step(ideas))
    slow = statistics.median(times["plain"])
    counts = [len(t) for t in case.batch.texts]
    print(f"batch {len(counts)}, texts of {min(counts)} to {max(counts)} tokens, mean {np.mean(counts):.1f},")
    print(f"padded to {case.longest}; {torch.get_num_threads()} threads; median of {options.repeats} steps")
    print(f"loss of every exact way: {plain:.6f}, equal to 1e-5\n")
    for name, taken in times.items():
        seconds = statistics.median(taken)
        rate = len(counts) / seconds
        print(f"{name:36} {seconds * 1e3:9.1f} ms  {rate:8.1f} pairs/s  {slow / seconds:6.2f}x")


if __name__ == "__main__":
    main()
