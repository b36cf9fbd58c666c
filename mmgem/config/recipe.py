"""Reading a recipe: TOML, with ``key=value`` overrides from the command line."""

from __future__ import annotations

import logging
import tomllib
from pathlib import Path
from typing import Any

from mmgem.config import Recipe, from_dict, to_dict
from mmgem.config.legacy import current_recipe
from mmgem.errors import ConfigError, DataError, UsageError
from mmgem.utils.text_files import read_text

_log = logging.getLogger("mmgem.config")


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read ``path``; each override is ``section.field=value`` with a TOML value (bare words are strings).

    Keys of earlier versions are read as what they are called now, and a warning says so. Raises
    ``ConfigError`` naming the file or field.
    """
    try:
        data = tomllib.loads(read_text(path))
    except (UsageError, DataError) as error:
        raise ConfigError(f"{path}: cannot be read: {str(error).removeprefix(f'{path}: ')}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    return from_dict(Recipe, _overridden(data, overrides or []))


def changed(recipe: Recipe, overrides: list[str]) -> Recipe:
    """``recipe`` with ``overrides`` as :func:`load_recipe` takes them. Raises ``ConfigError``."""
    return from_dict(Recipe, _overridden(to_dict(recipe), overrides))


def value_at(recipe: Recipe, key: str) -> Any:
    """The value of a dotted ``key`` of a recipe, such as ``train.batch_size``."""
    value: Any = to_dict(recipe)
    for name in key.split("."):
        value = value[name]
    return value


def _overridden(data: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """``data`` with ``overrides`` in its place, by today's keys; old ones are answered."""
    data, lines = current_recipe(data, [_parsed(override) for override in overrides])
    for line in lines:
        _log.warning("%s", line)
    return data


def _parsed(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"{override!r}: expected section.field=value")
    try:
        return key, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return key, text
