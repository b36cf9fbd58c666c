"""What can be learned, by the name of its section in a recipe (:class:`mmgem.tasks.base.Task`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from mmgem.utils.registry import Registry

T = TypeVar("T")


class TaskRegistry(Registry[Any]):
    """Tasks by the names of their sections; one that is registered has its ``name`` from there."""

    def register(self, name: str) -> Callable[[T], T]:
        """Decorate the class of a task. Raises ``ConfigError`` for a name that is taken."""
        add = super().register(name)

        def named(task: T) -> T:
            task.name = name  # type: ignore[attr-defined]
            return add(task)

        return named


TASKS = TaskRegistry(
    "task",
    {
        "image_text": "mmgem.tasks.image_text.task:ImageTextTask",
        "self_retrieval": "mmgem.tasks.self_retrieval.task:SelfRetrievalTask",
        "text_distillation": "mmgem.tasks.text_distillation.task:TextDistillationTask",
        "fromage": "mmgem.tasks.related.fromage:FROMAGeTask",
        "blip": "mmgem.tasks.related.blip:BLIPTask",
    },
    "mmgem.tasks",
)
