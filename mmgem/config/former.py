"""Names of earlier versions with what they are called now. :mod:`mmgem.config.legacy` applies them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from mmgem.config.tasks import TASKS
from mmgem.errors import ConfigError


@dataclass(frozen=True)
class ByValue:
    """A line of :data:`RECIPE_KEYS` for a switch whose values are other fields now."""

    key: str
    values: Mapping[str, Mapping[str, Any]]
    """What each value of ``key`` sets, by dotted keys; ``{}`` to be set: that such a table is there."""

    def __call__(self, value: Any) -> Mapping[str, Any]:
        """What to set instead of ``value``. Raises ``ConfigError`` for one that ``key`` never had."""
        if not isinstance(value, str) or value not in self.values:
            raise ConfigError(f"{self.key}: {value!r} is not one of {', '.join(map(repr, self.values))}")
        return self.values[value]


RECIPE_KEYS: dict[str, str | Callable[[Any], Mapping[str, Any]]] = {
    "start": "init",
    "start.tower": "init.encoder",
    "data.views": "data.cached_augmentations",
    "data.mosaic_views": "data.mosaic_augmentations",
    "data.long_texts": "data.joined_caption_prob",
    "model.tower": "model.encoder",
    "model.tower.cut": "model.encoder.freeze_until",
    "optim.lr_new": "optim.lr_heads",
    "optim.lr_tower": "optim.lr_encoder",
    "optim.warmup": "optim.warmup_steps",
    "optim.final_lr": "optim.final_lr_ratio",
    "optim.clip": "optim.max_grad_norm",
    "optim.ema": "optim.ema_decay",
    "train.batch": "train.batch_size",
    "train.keep": "train.keep_checkpoints",
    "train.chunk": "train.grad_cache_chunk_size",
    "objective.name": ByValue(
        "objective.name",
        {
            "joint": {"image_text": {}},
            "contrastive": {"image_text.caption.weight": 0.0},
            "captioning": {"image_text.contrastive.weight": 0.0},
        },
    ),
    "objective.contrastive_weight": "image_text.contrastive.weight",
    "objective.caption_weight": "image_text.caption.weight",
    "objective.loss": "image_text.contrastive.loss",
    "objective.max_logit_scale_log": "optim.max_logit_scale_log",
    "objective.soft_targets": "image_text.contrastive.distill_weight",
    "objective.teacher": "image_text.contrastive.teacher",
    "objective.teacher_temperature": "image_text.contrastive.teacher_temperature",
    "objective.mask_same": "image_text.contrastive.mask_false_negatives",
    "objective.label_smoothing": "image_text.caption.label_smoothing",
    "objective.vocabulary_sample": "image_text.caption.sampled_softmax",
    "objective.retrieve_weight": "self_retrieval.retrieve_weight",
    "objective.ask_weight": "self_retrieval.ask_weight",
    "objective.assess_weight": "self_retrieval.assess_weight",
    "objective.embed_weight": "self_retrieval.embed_weight",
    "corpus": "self_retrieval",
    "corpus.questions": "self_retrieval.generated_queries",
    "corpus.batch": "self_retrieval.batch_size",
    "corpus.negatives": "self_retrieval.hard_negatives",
    "corpus.scoring.titles": "self_retrieval.scoring.title_beams",
    "corpus.scoring.passages": "self_retrieval.scoring.passage_beams",
    "corpus.scoring.one_token": "self_retrieval.scoring.greedy_after_first",
    "corpus.scoring.embedded": "self_retrieval.scoring.dense_candidates",
    "corpus.scoring.assess": "self_retrieval.scoring.rerank_depth",
    "corpus.scoring.likelihood_weight": "self_retrieval.scoring.query_likelihood_weight",
}
"""Old dotted keys, each with what it is called now, in any section and at any depth, or with a function of
its value that gives what to set instead. A section stands for all its fields that have no line of their own.
"""

TENSORS = {
    "tower": "encoder",
    "h1": "visual_projection",
    "h2": "text_projection",
    "h3": "visual_connector",
    "emb": "emb_token",
    "cap": "cap_token",
}
"""First parts of the names of a model's tensors."""


def tasks_by_their_data(data: dict[str, Any], former: Collection[str]) -> None:
    """When ``[objective]`` and ``[corpus]`` were there, what was learned was said by ``data.train`` and
    ``corpus.passages``; images came first. What was set in vain is left for the checks to refuse."""
    if not any(key.startswith(("objective", "corpus")) for key in former):
        return
    images = data.get("data", {}).get("train") is not None
    if images:
        data.setdefault("image_text", {})
    elif _is_default(data, "image_text"):
        del data["image_text"]
    texts = data.pop("self_retrieval", None)
    if texts is not None:
        data["self_retrieval"] = texts
        if _is_default(data, "self_retrieval"):
            del data["self_retrieval"]


def _is_default(data: dict[str, Any], section: str) -> bool:
    from mmgem.config.convert import from_dict

    config = TASKS[section].Config
    return section in data and from_dict(config, data[section], section) == config()


RECIPE_UPGRADES: list[Callable[[dict[str, Any], Collection[str]], None]] = [tasks_by_their_data]
"""Changes of a whole plain recipe by today's keys, in place, for what no key alone tells; each is given the
old keys that were met."""
