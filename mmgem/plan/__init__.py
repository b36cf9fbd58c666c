"""What a recipe will cost, before it runs: a step is gone through on tensors of shapes and no data."""

from mmgem.plan.hardware import KNOWN, Hardware, known_hardware
from mmgem.plan.result import Plan
from mmgem.plan.run import plan

__all__ = ["KNOWN", "Hardware", "Plan", "known_hardware", "plan"]
