"""Configurations of transformers models as plain dicts: data that name sizes, never code."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from mmgem.errors import ConfigError

ATTENTION = (None, "eager", "sdpa")
"""What ``attn_implementation`` may be: of other names some are fetched from the hub and run."""

EXPERTS = (None, "eager", "batched_mm", "grouped_mm")
"""What ``experts_implementation`` may be."""

_IMPLEMENTATIONS = {
    "attn_implementation": ATTENTION,
    "_attn_implementation": ATTENTION,
    "_attn_implementation_internal": ATTENTION,
    "experts_implementation": EXPERTS,
    "_experts_implementation": EXPERTS,
    "_experts_implementation_internal": EXPERTS,
}
# Names of code, of kernels, of other models to fetch, of places.
_NEVER = {
    *("auto_map", "custom_pipelines", "custom_generate", "trust_remote_code", "use_kernels", "kernel_config"),
    *("name_or_path", "_name_or_path", "_commit_hash", "transformers_version", "architectures"),
    *("dtype", "torch_dtype", "quantization_config", "compression_config", "_auto_class"),
    *("backbone", "backbone_kwargs", "use_timm_backbone", "use_pretrained_backbone", "adapter_config"),
}
_TIMM = ("timm_wrapper", "timm_backbone")  # they fetch what their config names
# Fields that transformers reads though its config classes do not define them, and that are not numbers.
_TEXTUAL = {"rope_parameters", "rope_scaling", "per_layer_config", "out_features", "stage_names", "down_ops"}

_SIZES = {
    *("vocab_size", "hidden_size", "n_embd", "d_model", "intermediate_size", "num_hidden_layers", "n_layer"),
    *("num_attention_heads", "n_head", "num_key_value_heads", "head_dim", "max_position_embeddings"),
    *("n_positions", "image_size", "patch_size", "num_channels"),
}
_LAYERS = {"num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "depths", "encoder_layers"}
_MAX_LAYERS, _MAX_COUNT, _MAX_SIZE = 4096, 2**20, 2**31 - 1


def export_config(config: Any) -> dict[str, Any]:
    """The plain dict of a transformers ``config``, from which :func:`make_config` makes it again."""
    plain = config.to_diff_dict()
    for key in ("_name_or_path", "transformers_version", "dtype", "architectures", "quantization_config"):
        plain.pop(key, None)
    return {**plain, "model_type": config.model_type}


def make_config(model_type: Any, options: dict[str, Any], where: str) -> Any:
    """The transformers config of ``model_type`` with the fields ``options``, of which those that the type
    does not know are left out, unless they are numbers: some types read fields that they do not define.

    Raises ``ConfigError`` that begins with ``where`` for an unknown type, for sizes that cannot be and for an
    implementation of attention or experts that is not the library's own.
    """
    from transformers import CONFIG_MAPPING

    check_implementations(options, where)
    check_sizes(options, where)
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING or model_type in _TIMM:
        raise ConfigError(f"{where}: transformers has no model_type {str(model_type)[:60]!r}")
    config_class = CONFIG_MAPPING[model_type]
    try:
        return config_class(**known_fields(config_class, options))
    except Exception as error:  # each config class checks in its own way
        raise ConfigError(f"{where}: {last_line(error)}") from error


def known_fields(config_class: Any, options: dict[str, Any]) -> dict[str, Any]:
    """``options`` without what ``config_class`` does not define, numbers excepted, and without any name of
    code to run or of another model to fetch, at any depth."""
    known = {field.name for field in dataclasses.fields(config_class)} | set(config_class.attribute_map)
    parts = config_class.sub_configs_defaults
    kept = {}
    for key, value in options.items():
        if key in _NEVER or key.startswith("__"):
            continue
        if key in parts and isinstance(value, dict):
            kept[key] = _part(parts[key], value)
        elif key in known or key in _TEXTUAL or key in _IMPLEMENTATIONS:
            kept[key] = _without_code(value)
        elif _numeric(value) and (key == "num_labels" or not hasattr(config_class, key)):
            kept[key] = value
    return kept


def _part(spec: Any, options: dict[str, Any]) -> dict[str, Any]:
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    part_class = spec.config_class
    own_type = options.get("model_type", spec.model_type)
    if not issubclass(part_class, PreTrainedConfig):  # AutoConfig: the part says what it is
        if not isinstance(own_type, str) or own_type not in CONFIG_MAPPING or own_type in _TIMM:
            raise ConfigError(f"transformers has no model_type {str(own_type)[:60]!r}")
        part_class = CONFIG_MAPPING[own_type]
    model_type = {"model_type": options["model_type"]} if isinstance(options.get("model_type"), str) else {}
    return known_fields(part_class, options) | model_type


def _without_code(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_code(v) for k, v in value.items() if k not in _NEVER}
    return [_without_code(v) for v in value] if isinstance(value, list) else value


def without_implementations(options: dict[str, Any]) -> dict[str, Any]:
    """``options`` without any choice of attention or experts, at any depth: the library makes its own."""
    return {
        key: without_implementations(value) if isinstance(value, dict) else value
        for key, value in options.items()
        if key not in _IMPLEMENTATIONS
    }


def check_implementations(options: dict[str, Any], where: str) -> None:
    """Raise ``ConfigError`` naming a field of ``options``, at any depth, that chooses an implementation of
    attention or experts which is not the library's own."""
    for name, value in _fields(options):
        allowed = _IMPLEMENTATIONS.get(name.rpartition(".")[2])
        if allowed is not None and not (value is None or (isinstance(value, str) and value in allowed)):
            names = ", ".join(repr(a) for a in allowed if a)
            raise ConfigError(f"{where}: {name}: {str(value)[:60]!r} names code to run; there are {names}")


def check_sizes(options: dict[str, Any], where: str) -> None:
    """Raise ``ConfigError`` naming a field of ``options``, at any depth, that is no possible size."""
    for name, value in _fields(options):
        key = name.rpartition(".")[2]
        for item in value if isinstance(value, list) else [value]:
            possible = item is None or (type(item) is int and 1 <= item <= _MAX_SIZE)
            if key in _SIZES and not possible:
                raise ConfigError(f"{where}: {name}: {str(item)[:40]!r} is not a size, a whole number from 1")
            if type(item) is not int:
                continue
            if key in _LAYERS and item > _MAX_LAYERS:
                raise ConfigError(f"{where}: {name}: {item} layers, more than {_MAX_LAYERS}")
            if key.startswith(("num_", "n_")) and key not in _SIZES and item > _MAX_COUNT:
                raise ConfigError(f"{where}: {name}: {item}, more than {_MAX_COUNT}")
    heads, shared = options.get("num_attention_heads"), options.get("num_key_value_heads")
    if type(heads) is int and type(shared) is int and heads % shared:
        raise ConfigError(f"{where}: num_key_value_heads: {shared} does not divide {heads} attention heads")


def last_line(error: Exception) -> str:
    """The last line of a message, not at length: validators of configs put the reason there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _fields(options: dict[str, Any], inside: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in options.items():
        yield f"{inside}{key}", value
        if isinstance(value, dict):
            yield from _fields(value, f"{inside}{key}.")


def _numeric(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_numeric, value))
    return value is None or isinstance(value, int | float)
