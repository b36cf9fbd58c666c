"""The task of a text tower: the LLM's [EMB] learns its embeddings, and captions are learned from them.

The images of a checkpoint of two towers lie in a space with its texts (CLIP, SigLIP). So a network that has
its vision tower needs no image to learn the rest: embeddings follow the text tower's one by one (cosine) and
among each other (relational; Yang et al. 2023, arXiv 2307.12732, compare such losses), and a text is
predicted from its own embedding with noise in the place of the gap to an image (CapDec, Nukrai et al. 2022,
arXiv 2211.00575). Nothing of the text tower is in the model that comes of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmgem.config import ModelConfig
from mmgem.data.batches import ended
from mmgem.data.tokens import Tokenizer
from mmgem.distributed.partition import check_enough, shard_slice
from mmgem.distributed.world import World
from mmgem.errors import ConfigError, UsageError
from mmgem.evaluate.captions import caption_scores
from mmgem.inference.captioning import generate_captions
from mmgem.inference.texts import embed_texts
from mmgem.models.connectors.base import Connector
from mmgem.models.network import MMGEMNetwork
from mmgem.models.networks import network_class
from mmgem.tasks.base import FakeBatch, FakeTensorFactory, StepSize, Task, Terms
from mmgem.tasks.image_text.captioning import token_cross_entropy
from mmgem.tasks.image_text.lengths import TextStats, read_text_stats
from mmgem.tasks.image_text.text_pool import TextPool, relational_loss
from mmgem.tasks.text_distillation.config import TextDistillationConfig

_AT_ONCE = 64  # texts that are embedded, or captions that are written, when it is measured


@dataclass
class TextBatch:
    """Texts of a step of this process: ``texts``, each 1-D int64 on the CPU; ``teacher`` ``(T, D)`` unit
    rows; ``noisy`` ``(T, D)``, what they are captioned from; ``captioned``: which are; ``count`` and
    ``tokens``: the texts, and the tokens to be predicted, of all processes."""

    texts: list[Tensor]
    teacher: Tensor
    noisy: Tensor
    captioned: list[bool]
    count: int
    tokens: float


class TextBatches:
    """Indexable: ``batches[step]`` is the :class:`TextBatch` of that step, the same on every run."""

    def __init__(self, pool: TextPool, config: TextDistillationConfig, held_out: int, world: World):
        """``held_out``: how many of the first texts of ``pool`` are not learned."""
        self.pool, self.config, self.held_out, self.world = pool, config, held_out, world

    @property
    def per_epoch(self) -> float:
        """Steps in which every text is seen once."""
        count = len(self.pool.ids) - self.held_out
        return count / min(count, self.config.batch_size)

    @property
    def fingerprint(self) -> str:
        """Tells whether two runs learn from the same texts."""
        rows = np.ascontiguousarray(self.pool.rows[: len(self.pool.ids)])
        return f"{len(rows)}-{np.abs(rows).sum(dtype=np.float64):.6f}-{sum(map(len, self.pool.ids))}"

    def __getitem__(self, step: int) -> TextBatch:
        pool, world = self.pool, self.world
        drawn = pool.draw(step, self.config.batch_size, self.held_out)
        mine = shard_slice(len(drawn), world.rank, world.size)
        teacher = torch.from_numpy(np.asarray(pool.rows[drawn], np.float32))
        noise = np.random.default_rng((pool.seed, step, 29)).standard_normal(teacher.shape, np.float32)
        tokens = sum(len(pool.ids[n]) + 1 for n in drawn if pool.captioned[n])
        return TextBatch(
            texts=[pool.ids[n] for n in drawn[mine]],
            teacher=teacher[mine],
            noisy=(teacher + self.config.noise * torch.from_numpy(noise))[mine],
            captioned=[pool.captioned[n] for n in drawn[mine]],
            count=len(drawn),
            tokens=float(tokens),
        )


class TextDistillationTask(Task[TextBatch]):
    """Texts that the LLM learns to embed as a text tower does, and to say again."""

    name = "text_distillation"
    Config = TextDistillationConfig
    batch_size_key = "text_distillation.batch_size"
    data_key = "data.texts"

    config: TextDistillationConfig
    batches: TextBatches
    held_out: int = 0

    @property
    def teacher(self) -> tuple[str, str]:
        """The text tower and the field that names it."""
        if self.config.teacher is not None:
            return str(self.config.teacher), f"{self.name}.teacher"
        return self.recipe.init.encoder, "init.encoder"

    def check(self, world: World) -> None:
        """Raise ``ConfigError`` naming the field for what cannot work."""
        config = self.config
        if not self.recipe.data.texts:
            raise ConfigError(f"data.texts: missing; {self.name} learns from them")
        if self.recipe.init.checkpoint is not None and config.teacher is None:
            raise ConfigError(f"{self.name}.teacher: needed with init.checkpoint, which has no text tower")
        if not (config.cosine_weight or config.relational_weight or config.caption_weight):
            raise ConfigError(f"{self.name}: every loss has the weight 0")
        check_enough(config.batch_size, "texts", world.size, self.batch_size_key)
        self.check_model(self.recipe.model)

    def check_model(self, config: ModelConfig) -> None:
        """Raise ``ConfigError`` for a network that has no embeddings, or captions more than an embedding."""
        network = network_class(config)
        if not network.embeds:
            raise ConfigError(f"{self.name}: a network of kind {config.kind!r} has no embeddings")
        if self.config.caption_weight and not (network.captions and network.captions_from_embedding):
            raise ConfigError(
                f"{self.name}.caption_weight: a network of kind {config.kind!r} captions no embeddings; set "
                "it to 0"
            )

    def check_files(self) -> None:
        """Raise ``ConfigError`` for a file that is not there."""
        if missing := [path for path in self.recipe.data.texts if not path.exists()]:
            raise ConfigError(f"data.texts: {missing[0]}: No such file")

    def prepare(self, network: MMGEMNetwork, tokenizer: Tokenizer, world: World) -> None:
        """Read the texts and embed them by the teacher; what the connector keeps of them is put there."""
        self.check_model(network.config)
        self.tokenizer = tokenizer
        steps = self.recipe.train.steps
        most = None if steps is None else steps * self.config.batch_size + self.config.held_out
        self.pool = pool = TextPool(self.recipe, tokenizer, self.teacher, world, most)
        self.end, self.vocabulary = pool.end, pool.vocabulary
        width = pool.rows.shape[1]
        if width != network.config.dim:
            raise ConfigError(
                f"{self.teacher[1]}: its embeddings have {width} numbers, the model's {network.config.dim}"
            )
        self.held_out = min(self.config.held_out, len(pool.ids) // 10)
        learned = len(pool.ids) - self.held_out
        check_enough(learned, "texts", world.size, "data.texts")
        connector = network.visual_connector
        if isinstance(connector, Connector) and connector.memory_size:
            kept = pool.rows[self.held_out :][: connector.memory_size]
            if len(kept) < connector.memory_size:
                raise ConfigError(
                    f"model.connector.config.memory: {connector.memory_size}, but there are {learned} texts"
                )
            connector.remember(torch.from_numpy(np.asarray(kept, np.float32)))
        self.batches = TextBatches(pool, self.config, self.held_out, world)

    def load_batch(self, step: int, device: torch.device) -> TextBatch:
        """The batch of ``step``; token lists stay on the CPU, where they are packed."""
        batch = self.batches[step]
        batch.teacher, batch.noisy = batch.teacher.to(device), batch.noisy.to(device)
        return batch

    def forward(self, network: MMGEMNetwork, batch: TextBatch, world: World) -> Terms:
        """``text_cosine_loss``, ``text_relational_loss`` and ``text_caption_loss``, as far as they have a
        weight; ``text_cosine``, the mean cosine to the teacher, is for the log."""
        config = self.config
        embeds = bool(config.cosine_weight or config.relational_weight)
        segments = network.text_segments(batch.texts if embeds else [])
        captions = [n for n, captioned in enumerate(batch.captioned) if captioned and config.caption_weight]
        ids = [batch.texts[n] for n in captions]
        if captions:
            prefixes = network.project_text_prefix(batch.noisy[captions][:, None])
            segments += network.caption_segments(ids, prefixes)
        if not segments:
            return {}
        output = network.forward_packed(segments)
        terms: Terms = {}
        if embeds:
            own = F.normalize(output.embeddings.float(), dim=-1)
            cosines = (own * batch.teacher).sum(-1)
            terms["text_cosine"] = cosines.detach().sum() / batch.count
            if config.cosine_weight:
                terms["text_cosine_loss"] = config.cosine_weight * (1 - cosines).sum() / batch.count
            if config.relational_weight:
                temperatures = config.temperature, config.teacher_temperature
                loss = relational_loss(output.embeddings, batch.teacher, *temperatures, world)
                terms["text_relational_loss"] = config.relational_weight * loss
        if captions:
            before = len(output.prediction_states) - sum(len(tokens) + 1 for tokens in ids)
            loss = self._caption_loss(network, output.prediction_states[before:], ids) / batch.tokens
            terms["text_caption_loss"] = config.caption_weight * loss
        return terms

    def _caption_loss(self, network: MMGEMNetwork, states: Tensor, ids: list[Tensor]) -> Tensor:
        targets = ended(ids, self.end).to(states.device)
        sampled = self.config.sampled_softmax
        vocabulary = self.vocabulary if sampled else None
        return token_cross_entropy(network, states, targets, vocabulary, sampled)

    def pairs(self, batch: TextBatch) -> int:
        """Texts of a batch."""
        return len(batch.texts)

    @property
    def holds_out(self) -> bool:
        """Whether texts are kept to measure on."""
        return self.config.held_out > 0

    @property
    def evaluates(self) -> bool:
        """Whether there were enough to keep some."""
        return self.held_out > 0

    @torch.inference_mode()
    def evaluate(self, network: MMGEMNetwork) -> dict[str, Any]:
        """Of the texts held out: ``text_cosine``, the mean cosine to the teacher's embedding, ``text_R@1``,
        how often that is the nearest of all (percent), and CIDEr of greedy captions of it against the
        text."""
        config, pool, count = self.config, self.pool, self.held_out
        scores: dict[str, Any] = {}
        parts: list[float] = []
        teacher = np.asarray(pool.rows[:count], np.float32)
        if config.cosine_weight or config.relational_weight:
            cosines = embed_texts(network, self.tokenizer, pool.texts[:count], _AT_ONCE) @ teacher.T
            scores["text_cosine"] = round(float(np.diag(cosines).mean()), 4)
            scores["text_R@1"] = float(np.mean(cosines.argmax(1) == np.arange(count)) * 100)
            parts += [100 * scores["text_cosine"], scores["text_R@1"]]
        captioned = [n for n in range(count) if pool.captioned[n]]
        if config.caption_weight and captioned:
            predicted = []
            for at in range(0, len(captioned), _AT_ONCE):
                rows = torch.from_numpy(teacher[captioned[at : at + _AT_ONCE]]).to(network.emb_token.device)
                prefixes = network.project_visual_prefix(rows[:, None])
                beams = generate_captions(network, prefixes, self.tokenizer.end, beams=1)
                predicted += [self.tokenizer.decode(caption.ids) for caption in beams]
            scores["CIDEr"] = caption_scores(predicted, [[pool.texts[n]] for n in captioned])["CIDEr"]
            parts.append(scores["CIDEr"])
        scores["score"] = float(np.mean(parts)) if parts else 0.0
        return scores

    def describe_data(self, tokenizer: Tokenizer | None, tokens: int | None, world: World) -> TextStats:
        """Number and lengths of the texts."""
        try:
            return read_text_stats(self.recipe.data, tokenizer, tokens)
        except UsageError as error:
            raise ConfigError(f"data.texts: {error}") from error

    def step_size(self, data: TextStats) -> StepSize:
        """Texts of a step, steps of an epoch."""
        size, per_epoch = self.config.batch_size, None
        if data.count is not None:
            learned = data.count - min(self.config.held_out, data.count // 10)
            size = min(size, learned)
            per_epoch = round(learned / size)
        return StepSize(size, 0, per_epoch)

    def fake_batch(
        self, data: TextStats, network: MMGEMNetwork, world: World, fake_tensor: FakeTensorFactory
    ) -> FakeBatch:
        """Texts as long as the data's, each length as often."""
        size = self.step_size(data).pairs
        lengths = np.sort(data.tokens)[((np.arange(size) + 0.5) * len(data.tokens) / size).astype(int)]
        mine = np.random.default_rng(0).permutation(lengths)[shard_slice(size, world.rank, world.size)]
        texts = [torch.ones(int(n), dtype=torch.long) for n in mine]
        rows = fake_tensor(len(texts), network.config.dim)
        noisy, tokens = fake_tensor(*rows.shape), float(lengths.sum() + size)
        batch = TextBatch(texts, rows, noisy, [True] * len(texts), size, tokens)
        vocabulary = torch.arange(min(data.words, network.llm.vocabulary))
        self.end, self.vocabulary = 0, vocabulary
        sampled = self.config.sampled_softmax
        width = len(vocabulary) + sampled if sampled else network.llm.vocabulary
        return FakeBatch(batch, len(texts), 0, frozenset({width}))
