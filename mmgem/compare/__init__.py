"""Several recipes trained on the same data and measured alike: one table with standard errors, one plot."""

from mmgem.compare.run import Comparison, compare

__all__ = ["Comparison", "compare"]
