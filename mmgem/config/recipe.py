"""Reading a recipe: TOML, with ``key=value`` overrides from the command line."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

from mmgem.config import Recipe, from_dict, to_dict
from mmgem.config.legacy import current_config, current_key
from mmgem.errors import ConfigError, why


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read ``path``; each override is ``section.field=value`` with a TOML value (bare words are strings).

    Raises ``ConfigError`` naming the file or field.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {why(error)}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    data = _upgraded(data)
    for override in overrides or []:
        _apply(data, override)
    return from_dict(Recipe, data)


def changed(recipe: Recipe, overrides: list[str]) -> Recipe:
    """``recipe`` with ``overrides`` as :func:`load_recipe` takes them. Raises ``ConfigError``."""
    data = to_dict(recipe)
    for override in overrides:
        _apply(data, override)
    return from_dict(Recipe, data)


def value_at(recipe: Recipe, key: str) -> Any:
    """The value of a dotted ``key`` of a recipe, such as ``train.batch_size``."""
    value: Any = to_dict(recipe)
    for name in key.split("."):
        value = value[name]
    return value


def _upgraded(data: dict[str, Any]) -> dict[str, Any]:
    """``data`` with today's keys; old ones are named."""
    data, renamed = current_config(data)
    for old, new in renamed.items():
        print(f"mmgem: {old} is called {new} now", file=sys.stderr)
    return data


def _apply(data: dict[str, Any], override: str) -> None:
    old, equals, text = override.partition("=")
    key = current_key(old)
    if key != old:
        print(f"mmgem: {old} is called {key} now", file=sys.stderr)
    if not equals or not key:
        raise ConfigError(f"{override!r}: expected section.field=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, name = key.split(".")
    for table in tables:
        data = data.setdefault(table, {})
        if not isinstance(data, dict):
            raise ConfigError(f"{key}: {table} is not a table")
    data[name] = value
