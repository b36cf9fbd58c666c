"""Class names learned from what a frozen classifier says of any image: its soft labels against the cosines.

The classifier of the encoder's base weights gives a distribution over its classes for every image and box
(knowledge distillation, Hinton et al. 2015, arXiv 1503.02531). The embeddings of class names are to say the
same: for each image over the names of a step, and for each name over the images; cross-entropy both ways, at
the temperature of the contrastive loss. Kinds above the classes have the sum of their classes' probability;
kinds of which no two share a class are contrasted with each other. Which classes a step names is drawn from
what its images show, then from the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmgem.checkpoints.initialize import source_folder
from mmgem.config import Recipe
from mmgem.data.batches import Batch, DrawnTexts
from mmgem.data.labels import LabelSet, label_set, read_labels
from mmgem.data.tokens import Tokenizer
from mmgem.distributed.partition import shard_slice
from mmgem.distributed.world import World
from mmgem.errors import ConfigError
from mmgem.models.classifier import Classifier
from mmgem.models.network import MMGEMNetwork
from mmgem.models.pooling import pool_segments
from mmgem.tasks.base import FakeTensorFactory, Terms
from mmgem.tasks.image_text.config import LabelDistillationConfig
from mmgem.tasks.image_text.label_captions import TEMPLATES, name_sentences
from mmgem.tasks.image_text.terms import TextTerm

_TOKENS = 8  # of a sentence that names a class, about
_CLASSES = 1000


@dataclass
class Labelled:
    """What is to be learned of the names of a step. ``targets`` ``(V, classes + kinds)``: the probability of
    each for each image of this process; ``classes``: how many of them are classes, the others being kinds."""

    targets: Tensor
    classes: int


class LabelDistillationTerm(TextTerm):
    """Contrast images and class names as a classifier labels them."""

    config: LabelDistillationConfig
    uses_logit_bias = False
    labels: LabelSet
    classifier: Classifier

    def prepare(
        self, recipe: Recipe, network: MMGEMNetwork, tokenizer: Tokenizer, steps: int, world: World
    ) -> None:
        """Load the classifier and the names of its classes."""
        self.seed, self.tokenizer = recipe.train.seed, tokenizer
        init = recipe.init
        name = self.config.classifier or (network.config.encoder.kind if init.checkpoint else init.encoder)
        source = world.main_process_first(lambda: str(source_folder(name)))
        try:
            self.classifier = Classifier.load(source, network.config.encoder)
            if recipe.data.cached:
                self.classifier.check_features(network.encoder)
        except ConfigError as error:
            raise ConfigError(f"{self.section}.classifier: {error}") from error
        self.classifier.to(network.emb_token.device)
        self.labels = self._read_labels(world)
        count = len(self.classifier.bias)
        if len(self.labels.names) != count:
            raise ConfigError(
                f"{self.section}.labels: {len(self.labels.names)} classes; the classifier has {count}"
            )

    def _read_labels(self, world: World) -> LabelSet:
        path = self.config.labels
        if path is None:
            if self.classifier.names is None:
                raise ConfigError(f"{self.section}.labels: needed, the classifier does not name its classes")
            return label_set(self.classifier.names)
        folder = world.main_process_first(lambda: source_folder(str(path)))
        return read_labels(folder / "labels.jsonl" if folder.is_dir() else folder)

    def draw(self, batch: Batch, step: int, world: World) -> DrawnTexts:
        """Sentences that name classes and kinds, the same in every process, with their probabilities for this
        process's images."""
        probabilities = self._probabilities(batch)
        everywhere = world.all_gather(probabilities, world.all_gather_sizes(len(probabilities))).cpu()
        rng = np.random.default_rng((self.seed, step, 11))
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        shown = torch.multinomial(everywhere, 1, generator=generator)[:, 0]
        classes = rng.permutation(np.unique(shown.numpy()))
        others = np.setdiff1d(np.arange(len(self.labels.names)), classes)
        classes = np.concatenate([classes, rng.permutation(others)])[: self.config.classes_per_step]
        kinds = self.labels.disjoint_kinds(rng, self.config.kinds_per_step)
        names = [self.labels.names[c] for c in classes] + [self.labels.kind_names[k] for k in kinds]
        texts = self.tokenizer.encode_all([self._sentence(synonyms, rng) for synonyms in names])
        members = torch.from_numpy(self.labels.kind_members[kinds].astype(np.float32))
        kind_targets = probabilities @ members.T.to(probabilities.device)
        targets = torch.cat([probabilities[:, torch.from_numpy(classes)], kind_targets], 1)
        return DrawnTexts(texts, Labelled(targets, len(classes)))

    def _sentence(self, synonyms: tuple[str, ...], rng: np.random.Generator) -> str:
        name = synonyms[0]
        if len(synonyms) > 1 and rng.random() < self.config.synonym_prob:
            name = synonyms[int(rng.integers(1, len(synonyms)))]
        (sentence,) = name_sentences(name, [TEMPLATES[int(rng.integers(len(TEMPLATES)))]])
        return sentence

    @torch.no_grad()
    def _probabilities(self, batch: Batch) -> Tensor:
        """The classifier's, ``(V, classes)`` float32, of a batch's whole images, then of its boxes; of a
        clip the mean of its frames'."""
        parts = []
        stem = self.classifier.encoder.frozen_stem
        if batch.pixels is not None or len(batch.features):
            frames = self.classifier(batch.features if batch.pixels is None else stem(batch.pixels))
            parts.append(frames if batch.frames is None else pool_segments(frames, batch.frames))
        features = batch.box_features
        if batch.box_pixels is not None:
            features = stem(batch.box_pixels)
        if features is not None and batch.boxes is not None and batch.box_valid is not None:
            boxes, valid = batch.boxes.to(features.device), batch.box_valid.to(features.device)
            parts.append(self.classifier(features, boxes)[valid])
        return torch.cat(parts)

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
        """``{"label_loss"}``: this process's share of the mean over the images and over the names of all."""
        of: Labelled = drawn.of
        images, own = F.normalize(images.float(), dim=-1), F.normalize(own.float(), dim=-1)
        scale, targets = network.logit_scale.exp(), of.targets.to(images.device)
        sizes = world.all_gather_sizes(len(images))
        total = sum(sizes)
        logits = scale * images @ own.T
        loss = _soft_cross_entropy(logits[:, : of.classes], targets[:, : of.classes]) / total
        if of.classes < len(own):
            loss = loss + _soft_cross_entropy(logits[:, of.classes :], targets[:, of.classes :]) / total
        # Every process embeds all names; each takes the rows of its own share of them.
        mine = shard_slice(len(own), world.rank, world.size)
        everywhere = world.all_gather(images, sizes)
        name_targets = world.all_gather(targets, sizes).T[mine]
        by_name = _soft_cross_entropy(scale * own[mine] @ everywhere.T, name_targets)
        return {"label_loss": loss + by_name / len(own)}

    def fake_draw(
        self, network: MMGEMNetwork, batch: Batch, fake_tensor: FakeTensorFactory, world: World
    ) -> DrawnTexts:
        """So many names of a usual length."""
        classes = min(self.config.classes_per_step, _CLASSES)
        count = classes + (self.config.kinds_per_step if self.config.labels is not None else 0)
        assert batch.photos is not None
        targets = fake_tensor(len(batch.photos), count)
        return DrawnTexts([torch.ones(_TOKENS, dtype=torch.long)] * count, Labelled(targets, classes))


def _soft_cross_entropy(logits: Tensor, weights: Tensor) -> Tensor:
    """Sum over the rows of the cross-entropies against ``weights``, each row scaled to sum to 1."""
    targets = weights / weights.sum(1, keepdim=True).clamp(min=1e-12)
    return F.cross_entropy(logits, targets, reduction="sum")
