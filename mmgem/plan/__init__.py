"""What a recipe will cost, before it runs: its step is gone through on tensors that have shapes and no data."""

from mmgem.plan.hardware import KNOWN, Hardware, known_hardware
from mmgem.plan.plan import Plan, plan

__all__ = ["KNOWN", "Hardware", "Plan", "known_hardware", "plan"]
