"""The task of images and texts: what a run learns from photos, boxes and what captions say of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from mmgem.config import ModelConfig, Recipe
from mmgem.data.batches import Batch, Batches
from mmgem.data.shards.ahead import Ahead
from mmgem.data.tokens import Tokenizer
from mmgem.distributed.partition import check_enough
from mmgem.distributed.world import World
from mmgem.encoders import encoder_class
from mmgem.errors import ConfigError
from mmgem.models.network import MMGEMNetwork
from mmgem.models.networks import network_class
from mmgem.tasks.base import FakeBatch, FakeTensorFactory, StepSize, Task, Terms
from mmgem.tasks.image_text.captioning import CaptionTerm
from mmgem.tasks.image_text.config import ImageTextConfig
from mmgem.tasks.image_text.contrastive import ContrastiveTerm
from mmgem.tasks.image_text.data import Dev, check_encoder, check_files, read_batches
from mmgem.tasks.image_text.evaluation import evaluate
from mmgem.tasks.image_text.grad_cache import ImageTextGradCache
from mmgem.tasks.image_text.items import (
    drawn_texts,
    embed_items,
    item_embeddings,
    split_drawn,
    text_states,
    text_tokens,
)
from mmgem.tasks.image_text.label_distillation import LabelDistillationTerm
from mmgem.tasks.image_text.terms import (
    EmbeddingTerm,
    PairTerm,
    Term,
    TextTerm,
    TextTokenTerm,
    TokenTerm,
)
from mmgem.tasks.image_text.text_only import TextOnlyTerm


class ImageTextTask(Task[Batch]):
    """Images, boxes and texts of ``[data]``, learned by weighted terms.

    A task of one's own over the same data is a subclass with other ``terms`` (names and classes) and a
    ``Config``, a dataclass that has a field for each of them::

        @mmgem.TASKS.register("my_task")          # its section: [my_task]
        class MyTask(mmgem.ImageTextTask):
            Config = MyConfig                     # mine: MyTermConfig; caption: mmgem.CaptionConfig
            terms = {"mine": MyTerm, "caption": mmgem.CaptionTerm}
    """

    name = "image_text"
    Config: ClassVar[type[Any]] = ImageTextConfig
    terms: ClassVar[Mapping[str, type[Term]]] = {
        "contrastive": ContrastiveTerm,
        "caption": CaptionTerm,
        "label_distillation": LabelDistillationTerm,
        "text_only": TextOnlyTerm,
    }

    batches: Batches | Ahead
    dev: Dev | None = None

    def __init__(self, config: Any, recipe: Recipe):
        super().__init__(config, recipe)
        configs: dict[str, Any] = {name: getattr(config, name, None) for name in self.terms}
        for name, term_config in configs.items():
            if not hasattr(term_config, "weight"):
                raise ConfigError(
                    f"{self.name}: its Config has to have a field {name!r}, as its terms do, whose own has a "
                    "weight"
                )
        active = [self.terms[name](c, f"{self.name}.{name}") for name, c in configs.items() if c.weight]
        self.active: list[Term] = active
        self.embedding_terms = [term for term in active if isinstance(term, EmbeddingTerm)]
        self.text_terms = [term for term in active if isinstance(term, TextTerm)]
        self.needs_loose_files = bool(recipe.data.region_share or self.teacher or self.knows_words)
        self.uses_logit_bias = any(term.uses_logit_bias for term in active)
        self.token_terms = [term for term in active if isinstance(term, TokenTerm)]
        self.text_token_terms = [term for term in active if isinstance(term, TextTokenTerm)]
        self.pair_terms = [term for term in active if isinstance(term, PairTerm)]

    @property
    def teacher(self) -> tuple[str, str] | None:
        """The sentence encoder that has a say in a term, if one has, and the field that names it."""
        return next((term.teacher for term in self.active if term.teacher is not None), None)

    @property
    def knows_words(self) -> bool:
        """Whether the words of all captions have to be known before the first step."""
        return any(getattr(term.config, "sampled_softmax", 0) for term in self.active)

    def check(self, world: World) -> None:
        """Raise ``ConfigError`` naming the field for what cannot work."""
        data, train = self.recipe.data, self.recipe.train
        if data.train is None:
            raise ConfigError("data.train: missing")
        if not encoder_class(self.recipe.model.encoder).sees_images:
            kind = self.recipe.model.encoder.kind
            raise ConfigError(f'data.train: a model with model.encoder.kind = "{kind}" reads no images')
        if 0 < data.region_size < 32:
            raise ConfigError(f"data.region_size: {data.region_size} is neither 0 nor 32 pixels or more")
        boxes = round(train.batch_size * data.region_share)
        images = train.batch_size - boxes
        for share, count, what in (
            (data.region_share, boxes, "box"),
            (1 - data.region_share, images, "image"),
        ):
            if share and not count:
                raise ConfigError(
                    f"data.region_share: {data.region_share} leaves no {what} of train.batch_size = "
                    f"{train.batch_size}"
                )
        boxed = -(-boxes // data.boxes_per_image)
        for count, what in ((images, "images"), (boxed, "images to take boxes from")):
            if count:
                check_enough(count, what, world.size)
        if not self.active:
            raise ConfigError(f"{self.name}: every loss has the weight 0")
        if data.hard_negatives and self.teacher is None:
            raise ConfigError(f"data.hard_negatives: needs a teacher of [{self.name}.contrastive]")
        self._check_network(self.recipe.model)
        for term in self.active:
            term.check(self.recipe)
        teachers = [term.teacher for term in self.active if term.teacher is not None]
        for name, field in teachers[1:]:
            if name != teachers[0][0]:
                raise ConfigError(f"{field}: differs from {teachers[0][1]}; texts have one teacher")

    def check_model(self, config: ModelConfig) -> None:
        """Raise ``ConfigError`` for an encoder that is to train and of which the last map is cached, and for
        losses over what the network has not."""
        check_encoder(self.recipe, config.encoder)
        self._check_network(config)

    def _check_network(self, config: ModelConfig) -> None:
        network = network_class(config)
        embedding = [*self.embedding_terms, *self.text_terms, *self.text_token_terms, *self.pair_terms]
        for terms, can, what in (
            (embedding, network.embeds, "has no embeddings"),
            ([*self.token_terms, *self.pair_terms], network.captions, "writes no captions"),
            (self.text_terms, network.captions_from_embedding, "captions no embeddings"),
        ):
            if terms and not can:
                raise ConfigError(
                    f"{terms[0].section}.weight: a network of kind {config.kind!r} {what}; set it to 0"
                )
        if self.recipe.data.region_share and not network.regions:
            raise ConfigError(f"data.region_share: a network of kind {config.kind!r} has no regions")

    def check_files(self) -> None:
        """Raise ``ConfigError`` for a file that is not there."""
        check_files(self.recipe.data)

    def prepare(self, network: MMGEMNetwork, tokenizer: Tokenizer, world: World) -> None:
        """Read records, fill the feature cache, make batches."""
        self._check_network(network.config)
        self.tokenizer = tokenizer
        self.batches, self.dev = read_batches(self.recipe, self.teacher, network, tokenizer, world)
        steps = self.recipe.train.total_steps(self.batches.per_epoch)
        for term in self.text_terms:
            term.prepare(self.recipe, network, tokenizer, steps, world)
        self.world = world

    def load_batch(self, step: int, device: torch.device) -> Batch:
        """The batch of ``step`` on ``device``, with what terms draw beside; token lists stay on the CPU,
        where they are packed."""
        batch = self.batches[step].to(device)
        batch.drawn = {term.section: term.draw(batch, step, self.world) for term in self.text_terms}
        return batch

    def forward(self, network: MMGEMNetwork, batch: Batch, world: World) -> Terms:
        """The losses of all terms, from one pass of the LLM; and what terms tell beside."""
        visual = embed_items(network, batch)
        reads_texts = self.embedding_terms or self.text_terms or self.text_token_terms or self.pair_terms
        texts = batch.texts if reads_texts else []
        captioned = visual[batch.caption_owner] if self.token_terms and batch.captions else None
        output = network.read([*texts, *drawn_texts(batch)], batch.captions, captioned)
        states = output.prediction_states
        if self.token_terms and not batch.captions:  # every weight has a part in it: DDP waits for each
            states = states + 0 * network.caption_start(network.project_visual_prefix(visual[:1])).sum()
        images = item_embeddings(network, visual) if reads_texts else visual[:, 0]
        embedded = output.embeddings[: len(texts)]
        drawn_embeddings = split_drawn(output.embeddings[len(texts) :], batch)
        token_losses: Terms = {}
        if self.token_terms:
            (tokens,) = world.all_reduce_sum(batch.caption_tokens)
            for token_term in self.token_terms:
                terms = token_term.loss(network, states, batch, tokens)
                token_losses |= token_term.weighted(terms)
        if self.text_token_terms:
            (tokens,) = world.all_reduce_sum(text_tokens(batch))
            for text_token_term in self.text_token_terms:
                terms = text_token_term.loss(network, text_states(output, batch), batch, tokens)
                token_losses |= text_token_term.weighted(terms)
        losses: Terms = {}
        for embedding_term in self.embedding_terms:
            terms = embedding_term.loss(network, images, embedded, batch, world)
            losses |= embedding_term.weighted(terms)
        for pair_term in self.pair_terms:
            terms = pair_term.loss(network, visual, images, embedded, batch, world)
            losses |= pair_term.weighted(terms)
        losses |= token_losses
        for text_term in self.text_terms:
            own, drawn = drawn_embeddings[text_term.section], batch.drawn[text_term.section]
            terms = text_term.loss(network, images, embedded, own, drawn, batch, world)
            losses |= text_term.weighted(terms | text_term.token_loss(network, own, drawn))
        return losses

    @property
    def grad_cache(self) -> ImageTextGradCache | None:
        """Embeddings over the whole batch, captions part by part; None where images and texts are read
        together."""
        if self.pair_terms:
            return None
        return ImageTextGradCache(
            self.embedding_terms, self.token_terms, self.text_terms, self.text_token_terms
        )

    def pairs(self, batch: Batch) -> int:
        """Texts of a batch."""
        return len(batch.texts)

    def close(self) -> list[str]:
        """End the processes that read ahead; what shards held that could not be used."""
        if not isinstance(self.batches, Ahead):
            return []
        self.batches.close()
        return list(self.batches.problems)

    @property
    def holds_out(self) -> bool:
        """Whether there is a dev split, or file."""
        return self.recipe.data.dev is not None or bool(self.recipe.data.dev_split)

    @property
    def evaluates(self) -> bool:
        """Whether there are dev images."""
        return self.dev is not None

    def evaluate(self, network: MMGEMNetwork) -> dict[str, Any]:
        """Retrieval and captions of the dev images, as far as terms train them."""
        assert self.dev is not None
        retrieval, captions = bool(self.embedding_terms), bool(self.token_terms)
        return evaluate(network, self.tokenizer, *self.dev, retrieval=retrieval, captions=captions)

    def describe_data(self, tokenizer: Tokenizer | None, tokens: int | None, world: World) -> Any:
        """Numbers and lengths of the captions (:class:`~mmgem.tasks.image_text.lengths.CaptionStats`)."""
        from mmgem.tasks.image_text.lengths import read_caption_stats

        return read_caption_stats(self.recipe.data, tokenizer, tokens)

    def step_size(self, data: Any) -> StepSize:
        """Pairs, images and boxes of a step, steps of an epoch."""
        from mmgem.tasks.image_text.fake_batch import step_size

        return step_size(self.recipe, data)

    def fake_batch(
        self, data: Any, network: MMGEMNetwork, world: World, fake_tensor: FakeTensorFactory
    ) -> FakeBatch:
        """Images, boxes and texts as the data has them, without pixels."""
        from mmgem.tasks.image_text.fake_batch import fake_batch

        sampled = max((getattr(term.config, "sampled_softmax", 0) for term in self.active), default=0)
        teacher = self.teacher is not None
        fake = fake_batch(self.recipe, network, data, world, fake_tensor, teacher, sampled)
        batch: Batch = fake.batch
        batch.drawn = {
            term.section: term.fake_draw(network, batch, fake_tensor, world) for term in self.text_terms
        }
        return fake


__all__ = ["ImageTextTask"]
