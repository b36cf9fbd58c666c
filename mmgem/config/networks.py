"""Network classes by ``model.kind`` (:class:`mmgem.models.network.MMGEMNetwork` is the first)."""

from __future__ import annotations

from typing import Any

from mmgem.utils.registry import Registry

NETWORKS: Registry[Any] = Registry(
    "network",
    {
        "mmgem": "mmgem.models.network:MMGEMNetwork",
        "dual_encoder": "mmgem.models.related.dual_encoder:DualEncoder",
        "clipcap": "mmgem.models.related.clipcap:ClipCap",
        "minigpt4": "mmgem.models.related.minigpt4:MiniGPT4",
        "fromage": "mmgem.models.related.fromage:FROMAGe",
        "grit": "mmgem.models.related.grit:GRIT",
        "coca": "mmgem.models.related.coca:CoCa",
        "flamingo": "mmgem.models.related.flamingo:Flamingo",
        "blip": "mmgem.models.related.blip:BLIP",
    },
    "mmgem.networks",
)
