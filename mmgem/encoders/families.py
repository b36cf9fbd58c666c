"""Families of vision models in transformers: what is known to work, and what cannot.

:data:`FAMILIES` is a table with a tiny configuration of each, which tests/test_vision_families.py runs and
docs/models.md shows. A family that is not in it works if its shapes are those of a map (see
:mod:`mmgem.encoders.transformers_vision`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

REFUSED: dict[str, str] = {}


def model_inputs(model_type: str, hf_config: Any, pixels: Tensor) -> dict[str, Any]:
    """What the forward of a model takes for ``pixels`` ``(B, 3, S, S)``."""
    return {"pixel_values": pixels}
