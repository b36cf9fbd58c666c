"""Training objectives: each file turns a batch into a dict of named losses.

A batch (:class:`~mmgem.data.batches.Batch`) holds B images, N texts to embed and M captions to predict; the
objective of a text corpus has batches of its own and adds to any of the others.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mmgem.config import ObjectiveConfig
from mmgem.data.batches import Batch
from mmgem.models.network import MMGEMNetwork
from mmgem.objectives.captioning import captioning
from mmgem.objectives.contrastive import contrastive
from mmgem.objectives.corpus import naming, reading
from mmgem.objectives.joint import joint
from mmgem.ranks import Ranks

Objective = Callable[[MMGEMNetwork, Batch, ObjectiveConfig, Ranks], dict[str, Tensor]]

OBJECTIVES: dict[str, Objective] = {"joint": joint, "contrastive": contrastive, "captioning": captioning}

__all__ = ["OBJECTIVES", "Objective", "captioning", "contrastive", "joint", "naming", "reading"]
