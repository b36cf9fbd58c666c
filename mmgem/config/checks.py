"""What the facts at config fields ask of values; of any config dataclass, those of other packages too.

A recipe is walked section by section. A dict of sections (of tasks, by name) is no level of its own: its
sections stand beside the others, as they do in the file.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from typing import Any

from mmgem.config.fields import FINITE, Fact, Range, fact_of
from mmgem.errors import ConfigError


@dataclass(frozen=True)
class Entry:
    """A field that is no section: its full name, value, default and fact."""

    name: str
    value: Any
    default: Any
    """``dataclasses.MISSING`` where it has none."""
    fact: Fact


def entries(
    config: Any, section: str = "", default: Any = MISSING, around: Fact | None = None
) -> Iterator[Entry]:
    """Every field of the dataclass ``config`` and of the sections in it, in order.

    ``section``: where it stands, put before the names; ``default``: the instance whose values are the
    defaults, if not those of its class; ``around``: the fact of the field that holds it.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = f"{section}.{field.name}" if section else field.name
        fact = fact_of(field).within(around or Fact())
        usual = getattr(default, field.name, MISSING)
        if usual is MISSING:
            usual = default_of(field)
        if dataclasses.is_dataclass(value):
            yield from entries(value, name, usual if type(usual) is type(value) else MISSING, fact)
        elif _holds_sections(value):
            for key, inner in value.items():
                yield from entries(inner, f"{section}.{key}" if section else key, MISSING, fact)
        else:
            yield Entry(name, value, usual, fact)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """What a field is if it is not set; ``dataclasses.MISSING`` if it has to be."""
    return field.default_factory() if field.default_factory is not MISSING else field.default


def numbers(config: Any, section: str = "") -> Iterator[tuple[str, float, Range]]:
    """Name, value and range of every number in a config dataclass, those of lists one by one.

    The numbers of a table with free keys count only if the field has a range.
    """
    for entry in entries(config, section):
        allowed = entry.fact.range
        for item in _items(entry.value, tables=allowed is not None):
            if dataclasses.is_dataclass(item):
                yield from numbers(item, entry.name)
            elif isinstance(item, int | float) and not isinstance(item, bool):
                yield entry.name, item, allowed or FINITE


def check_ranges(config: Any, section: str = "") -> None:
    """Raise ``ConfigError`` naming the first number of a config dataclass that is out of its range."""
    for name, value, allowed in numbers(config, section):
        if value not in allowed:
            raise ConfigError(f"{name}: {value} is not {allowed if math.isfinite(value) else FINITE}")


def check_needs(recipe: Any) -> None:
    """Raise ``ConfigError`` naming the first field of ``recipe`` that is set to another value than its
    default while what it needs is not so."""
    for entry in entries(recipe):
        if entry.value == entry.default:
            continue
        for need in entry.fact.needs:
            if not need.holds(recipe):
                raise ConfigError(f"{entry.name}: {need.reason}")


def free_on_resume(config: Any, section: str = "") -> set[str]:
    """Full names of the fields of a config dataclass that may change when a run goes on."""
    return {entry.name for entry in entries(config, section) if entry.fact.free_on_resume}


def free_on_init(config: Any, section: str = "") -> set[str]:
    """Full names of the fields of a config dataclass that may differ from the model a run starts from."""
    return {entry.name for entry in entries(config, section) if entry.fact.free_on_init}


def _holds_sections(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(dataclasses.is_dataclass, value.values()))


def _items(value: Any, tables: bool) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _items(item, tables)
    elif isinstance(value, dict):
        for item in value.values() if tables else ():
            yield from _items(item, tables)
    else:
        yield value
