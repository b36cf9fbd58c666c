"""Configurations of transformers models as plain dicts."""

from __future__ import annotations

from typing import Any


def export_config(config: Any) -> dict[str, Any]:
    """The plain dict of a transformers ``config``, from which ``AutoConfig.for_model`` makes it again."""
    plain = config.to_diff_dict()
    for key in ("_name_or_path", "transformers_version", "dtype", "architectures", "quantization_config"):
        plain.pop(key, None)
    return {**plain, "model_type": config.model_type}
