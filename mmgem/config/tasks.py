"""What can be learned, by the name of its section in a recipe (:class:`mmgem.tasks.base.Task`)."""

from __future__ import annotations

from typing import Any

from mmgem.utils.registry import Registry

TASKS: Registry[Any] = Registry(
    "task",
    {
        "image_text": "mmgem.tasks.image_text.task:ImageTextTask",
        "self_retrieval": "mmgem.tasks.self_retrieval.task:SelfRetrievalTask",
    },
    "mmgem.tasks",
)
