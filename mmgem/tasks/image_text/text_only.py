"""Learning from captions without images, in both modes.

Embedding: the cosines of the texts of a step, those of its images among them, follow a text teacher's. So a
text that no image shows lies beside texts that one does. Captioning: a text is predicted from its own
embedding, as if it were that of an image (CapDec, Nukrai et al. 2022, arXiv 2211.00575; DeCap, Li et al.
2023). What lies between an image and its text is added first: the difference of a random pair of the step,
which has the size, the direction and the scatter of the gap.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmgem.config import Recipe
from mmgem.data.batches import Batch, DrawnTexts, ended
from mmgem.data.tokens import Tokenizer
from mmgem.distributed.partition import shard_slice
from mmgem.distributed.world import World
from mmgem.errors import ConfigError
from mmgem.models.network import MMGEMNetwork
from mmgem.tasks.base import FakeTensorFactory, Terms
from mmgem.tasks.image_text.captioning import token_cross_entropy
from mmgem.tasks.image_text.config import TextOnlyConfig
from mmgem.tasks.image_text.contrastive import gather_batch
from mmgem.tasks.image_text.fake_batch import TEACHER_WIDTH
from mmgem.tasks.image_text.lengths import ASSUMED_TOKENS, ASSUMED_WORDS
from mmgem.tasks.image_text.terms import TextTerm
from mmgem.tasks.image_text.text_pool import TextPool, relational_loss


@dataclass
class TextStep:
    """Of all drawn texts of a process: ``teacher`` ``(T, E)`` unit rows (E = 0: none), ``pairs`` ``(T,)``
    random numbers that choose the pair whose gap each is given, ``tokens``: to be predicted, of all
    processes, ``captioned``: which are captioned. ``gaps`` ``(T, D)`` and ``lengths`` ``(T, 1)``, put there
    by the loss over embeddings: of the pair, image less text as unit embeddings, and the image's norm."""

    teacher: Tensor
    pairs: Tensor
    captioned: list[bool]
    tokens: float
    gaps: Tensor | None = None
    lengths: Tensor | None = None


class TextOnlyTerm(TextTerm):
    """Learn from texts alone."""

    config: TextOnlyConfig
    uses_logit_bias = False

    def check(self, recipe: Recipe) -> None:
        """Raise ``ConfigError`` without texts, or where nothing is learned from them."""
        if not recipe.data.texts:
            raise ConfigError("data.texts: missing; " + self.section + " learns from them")
        if self.config.teacher is None and not self.config.caption_weight:
            raise ConfigError(f'{self.section}.teacher: needed, e.g. "minilm", with caption_weight = 0')

    @property
    def teacher(self) -> tuple[str, str] | None:
        """The text teacher and its field."""
        return None if self.config.teacher is None else (str(self.config.teacher), f"{self.section}.teacher")

    def prepare(
        self, recipe: Recipe, network: MMGEMNetwork, tokenizer: Tokenizer, steps: int, world: World
    ) -> None:
        """Read the texts; embed those that the run will draw by the teacher."""
        self.pool = TextPool(recipe, tokenizer, self.teacher, world, steps * self.config.batch_size)
        self.end, self.vocabulary = self.pool.end, self.pool.vocabulary

    def draw(self, batch: Batch, step: int, world: World) -> DrawnTexts:
        """This process's share of the texts of a step; each text is drawn once before any is drawn again."""
        pool = self.pool
        drawn = pool.draw(step, self.config.batch_size)
        mine = shard_slice(len(drawn), world.rank, world.size)
        chosen = drawn[mine]
        captioned = [pool.captioned[n] for n in chosen]
        tokens = sum(len(pool.ids[n]) + 1 for n, c in zip(chosen, captioned, strict=True) if c)
        (total,) = world.all_reduce_sum(tokens)
        pairs = np.random.default_rng((pool.seed, step, 17)).random(len(drawn), np.float32)[mine]
        teacher = torch.from_numpy(np.asarray(pool.rows[chosen], np.float32))
        of = TextStep(teacher, torch.from_numpy(pairs), captioned, total)
        return DrawnTexts([pool.ids[n] for n in chosen], of)

    def loss(
        self,
        network: MMGEMNetwork,
        images: Tensor,
        texts: Tensor,
        own: Tensor,
        drawn: DrawnTexts,
        batch: Batch,
        world: World,
    ) -> Terms:
        """``{"text_loss"}``: this process's share of the mean over all texts of a step, of images or not;
        nothing without a teacher."""
        of: TextStep = drawn.of
        with torch.no_grad():
            pairs = gather_batch(images.float(), texts.float(), batch, world)
            pair = (of.pairs.to(own.device) * len(pairs.texts)).long().clamp(max=len(pairs.texts) - 1)
            image, text = pairs.images[pairs.owner[pair]], pairs.texts[pair]
            of.gaps = F.normalize(image, dim=-1) - F.normalize(text, dim=-1)
            of.lengths = image.norm(dim=-1, keepdim=True)
        if batch.teacher_texts is None or not of.teacher.shape[1]:
            return {}
        teacher = torch.cat([batch.teacher_texts.to(own.device), of.teacher.to(own.device)])
        config = self.config
        loss = relational_loss(
            torch.cat([texts, own]), teacher, config.temperature, config.teacher_temperature, world
        )
        return {"text_loss": loss}

    def token_loss(self, network: MMGEMNetwork, own: Tensor, drawn: DrawnTexts) -> Terms:
        """``{"text_caption_loss"}``: mean over the tokens of all drawn texts that are captioned."""
        of: TextStep = drawn.of
        captioned = [n for n, c in enumerate(of.captioned[drawn.rows]) if c]
        if not self.config.caption_weight or not captioned:
            return {}
        assert of.gaps is not None and of.lengths is not None
        at = torch.tensor(captioned, device=own.device)
        unit = F.normalize(own.detach()[at].float(), dim=-1)
        seen = of.lengths[drawn.rows][at] * (unit + self.config.noise * of.gaps[drawn.rows][at])
        ids = [drawn.texts[n] for n in captioned]
        prefixes = network.project_visual_prefix(seen[:, None])
        states = network.forward_packed(network.caption_segments(ids, prefixes)).prediction_states
        loss = token_cross_entropy(network, states, ended(ids, self.end), self.vocabulary) / of.tokens
        return {"text_caption_loss": self.config.caption_weight * loss}

    def fake_draw(
        self, network: MMGEMNetwork, batch: Batch, fake_tensor: FakeTensorFactory, world: World
    ) -> DrawnTexts:
        """So many texts of a usual length."""
        rows = shard_slice(self.config.batch_size, world.rank, world.size)
        count = len(range(self.config.batch_size)[rows])
        self.end, self.vocabulary = 0, torch.arange(min(ASSUMED_WORDS, network.llm.vocabulary))
        tokens = float(self.config.batch_size * (ASSUMED_TOKENS + 1))
        of = TextStep(
            fake_tensor(count, TEACHER_WIDTH if self.teacher else 0),
            torch.zeros(count),
            [True] * count,
            tokens,
        )
        return DrawnTexts([torch.ones(ASSUMED_TOKENS, dtype=torch.long)] * count, of)
