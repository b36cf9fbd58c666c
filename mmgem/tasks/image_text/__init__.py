"""Images and texts: contrastive, captioning, or both in one pass."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from mmgem.config import ObjectiveConfig
from mmgem.data.batches import Batch
from mmgem.distributed.world import World
from mmgem.models.network import MMGEMNetwork
from mmgem.tasks.image_text.captioning import captioning
from mmgem.tasks.image_text.contrastive import contrastive
from mmgem.tasks.image_text.joint import joint

Objective = Callable[[MMGEMNetwork, Batch, ObjectiveConfig, World], dict[str, Tensor]]

OBJECTIVES: dict[str, Objective] = {"joint": joint, "contrastive": contrastive, "captioning": captioning}
