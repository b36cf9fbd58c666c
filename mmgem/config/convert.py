"""Config dataclasses from plain data and back. Unknown keys and wrong types are errors naming the field."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from mmgem.errors import ConfigError

T = TypeVar("T")


def from_dict(cls: type[T], data: Any, where: str = "") -> T:
    """Build dataclass ``cls`` from plain ``data``; ``where`` prefixes field names in messages.

    Raises :class:`ConfigError` naming the field for an unknown key, a missing one or a wrong type.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where or cls.__name__}: expected a table, got {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    prefix = f"{where}." if where else ""
    values: dict[str, Any] = {}
    sections = next((f for f in fields.values() if "sections" in f.metadata), None)
    for key, value in data.items():
        if sections is not None and key in sections.metadata["sections"]:
            config = sections.metadata["sections"][key].Config
            values.setdefault(sections.name, {})[key] = from_dict(config, value, f"{prefix}{key}")
            continue
        if key not in fields or fields[key] is sections:
            known = fields.keys() - {sections and sections.name}
            if sections is not None and isinstance(value, dict):
                known |= set(sections.metadata["sections"])
                hint = "; a task of one's own is made known by --plugin"
                raise ConfigError(f"{key}: unknown section (known: {', '.join(sorted(known))}{hint})")
            raise ConfigError(f"{prefix}{key}: unknown field (known: {', '.join(sorted(known))})")
        values[key] = _convert(hints[key], value, f"{prefix}{key}")
    for name, f in fields.items():
        missing = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if missing and name not in values:
            raise ConfigError(f"{prefix}{name}: missing")
    return cls(**values)


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where}: {value!r} is not one of {', '.join(map(repr, args))}")
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple:
        inner = list(args[:1]) * len(value) if args[-1] is Ellipsis else list(args)
        if not isinstance(value, list | tuple) or len(value) != len(inner):
            raise ConfigError(f"{where}: expected {len(inner)} values, got {value!r}")
        return tuple(
            _convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(inner, value, strict=True))
        )
    if origin is list:
        if not isinstance(value, list):
            raise ConfigError(f"{where}: expected a list, got {value!r}")
        return [_convert(args[0], v, f"{where}[{i}]") for i, v in enumerate(value)]
    if origin is dict or hint is dict:
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: expected a table, got {value!r}")
        return value
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"{where}: expected {hint.__name__}, got {value!r}")
    return value


def to_dict(config: Any) -> dict[str, Any]:
    """Plain, JSON-ready form of a config dataclass, a recipe with the sections of its tasks beside the
    others; :func:`from_dict` reads it back equal."""

    def plain(value: Any) -> Any:
        if isinstance(value, Path):
            return str(value)
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    whole = plain(dataclasses.asdict(config))
    for f in dataclasses.fields(config):
        if "sections" in f.metadata:
            whole |= whole.pop(f.name)
    return whole
