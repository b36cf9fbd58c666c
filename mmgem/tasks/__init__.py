"""What can be learned: one file, or folder, a task (:mod:`mmgem.tasks.base`)."""

from mmgem.config import TASKS
from mmgem.tasks.base import FakeBatch, GradCache, StepSize, Task, Terms

__all__ = ["TASKS", "FakeBatch", "GradCache", "StepSize", "Task", "Terms"]
