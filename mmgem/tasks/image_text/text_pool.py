"""The texts of ``data.texts`` as a run draws them: token ids and a text teacher's embeddings, in an order
that is random and the same on every process; and the loss that lets their cosines follow the teacher's."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmgem.config import Recipe
from mmgem.data.text_corpus import read_texts
from mmgem.data.tokens import Tokenizer
from mmgem.distributed.world import World
from mmgem.errors import ConfigError, DataError, UsageError
from mmgem.tasks.image_text.teacher import embed_captions

_MASKED = -1e4  # far below any logit, yet finite: a target of 0 times it is 0


class TextPool:
    """``texts``: as they were read, those of up to ``preprocessing.max_text_tokens``; of each ``ids``, its
    teacher's ``rows`` ``(T, E)`` and whether it is ``captioned`` (in the first language). ``vocabulary``: the
    tokens of those that are."""

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: Tokenizer,
        teacher: tuple[str, str] | None,
        world: World,
        most: int | None = None,
    ):
        """``teacher``: its name and the field that names it (None: no rows); ``most``: how many texts a run
        can draw. Raises ``ConfigError`` or ``DataError``."""
        self.seed, self.end = recipe.train.seed, tokenizer.end
        try:
            found = read_texts(recipe.data.texts, recipe.data.split or None)
        except UsageError as error:
            raise ConfigError(f"data.texts: {error}") from error
        order = np.random.default_rng((self.seed, 23)).permutation(len(found))
        names = list(found)
        chosen = [names[n] for n in order[:most]]
        ids = tokenizer.encode_short(chosen)
        short = [(text, tokens) for text, tokens in zip(chosen, ids, strict=True) if tokens is not None]
        if not short:
            raise DataError("data.texts: no text is as short as preprocessing.max_text_tokens")
        self.texts = [text for text, _ in short]
        self.ids = [tokens for _, tokens in short]
        self.captioned = [found[text] for text in self.texts]
        self.rows = world.main_process_first(
            lambda: embed_captions(*teacher, self.texts) if teacher else np.zeros((len(self.texts), 0))
        )
        said = [tokens for tokens, captioned in zip(self.ids, self.captioned, strict=True) if captioned]
        self.vocabulary = torch.cat([*said, torch.tensor([self.end])]).unique()

    def draw(self, step: int, size: int, first: int = 0) -> np.ndarray:
        """Numbers of the ``size`` texts of ``step``, of all processes; each is drawn once before any is drawn
        again. Those before ``first`` never are."""
        count = len(self.ids) - first
        size = min(size, count)
        turn, place = divmod(step, max(1, count // size))
        order = np.random.default_rng((self.seed, turn, 13)).permutation(count)
        return first + order[place * size : (place + 1) * size]


def relational_loss(
    embeddings: Tensor, teacher: Tensor, temperature: float, teacher_temperature: float, world: World
) -> Tensor:
    """This process's share of the mean over all texts of a step of the cross-entropy between two
    distributions over the other texts: by the cosines of ``embeddings`` ``(T, D)``, not normalised, and by
    those of the unit rows ``teacher`` ``(T, E)``."""
    rows, teacher = F.normalize(embeddings.float(), dim=-1), teacher.to(embeddings.device)
    sizes = world.all_gather_sizes(len(rows))
    everywhere, all_teacher = world.all_gather(rows, sizes), world.all_gather(teacher, sizes)
    first = sum(sizes[: world.rank])
    itself = torch.arange(len(rows), device=rows.device)[:, None] + first == torch.arange(
        len(everywhere), device=rows.device
    )
    logits = (rows @ everywhere.T / temperature).masked_fill(itself, _MASKED)
    target = (teacher @ all_teacher.T / teacher_temperature).masked_fill(itself, _MASKED)
    return F.cross_entropy(logits, target.softmax(1), reduction="sum") / len(everywhere)
