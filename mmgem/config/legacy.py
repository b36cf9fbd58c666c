"""Recipes, fields of model folders and tensors of earlier versions, read by the names they have now."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from mmgem.config.former import RECIPE_KEYS, RECIPE_UPGRADES, TENSORS
from mmgem.errors import ConfigError

V = TypeVar("V")
Key = tuple[str, ...]


def current_recipe(
    data: dict[str, Any], overrides: Sequence[tuple[str, Any]] = ()
) -> tuple[dict[str, Any], list[str]]:
    """A plain recipe of any version by today's keys, with ``overrides`` (dotted keys and values), and a line
    for each old key that was met. ``data`` may be changed.

    An override by an old key is one of what the recipe says by that key or by today's; one by today's has the
    last word. Raises ``ConfigError`` naming the key, as :func:`current_config`.
    """
    by_todays_keys = []
    for key, value in overrides:
        names = _names_of_former(key, value)
        if names is None:
            by_todays_keys.append((key, value))
            continue
        for name in names:
            _remove(data, *name)
        _set(data, key, value)
    data, lines = current_config(data)
    for key, value in by_todays_keys:
        _set(data, key, value)
    for upgrade in RECIPE_UPGRADES:
        upgrade(data, lines.keys())
    return data, list(lines.values())


def current_config(data: Any, section: str = "") -> tuple[Any, dict[str, str]]:
    """Plain config ``data`` of any version with today's keys, and the old keys that were met, each with a
    line that says what it is called now.

    ``section``: where in a recipe ``data`` stands, by the name then or now; what has moved out of it is left
    out. ``data`` that is no table is returned as it is. Raises ``ConfigError`` naming the key where an old
    and a new name say the same thing, or one that was a switch has a value that it never had.
    """
    if not isinstance(data, dict):
        return data, {}
    top = tuple(section.split(".")) if section else ()
    given = dict(_leaves(data, top))
    moved = {old: _current(old, value) for old, value in given.items()}
    # Where a switch and another old key set the same, it was the switch that decided.
    switched = {new for old in moved if _is_switch(old) for new in moved[old]}
    tree: dict[str, Any] = {}
    origins: dict[Key, Key] = {}
    for old, values in moved.items():
        for new, value in values.items():
            if new != old and new in switched and not _is_switch(old):
                continue
            if value != {} and origins.setdefault(new, old) != old:
                twice = sorted({old, origins[new]} - {new})
                raise ConfigError(
                    f"{' and '.join(map('.'.join, twice))}: called {'.'.join(new)} now, and that is given too"
                )
            _place(tree, new, value)
    for name in _current_section(top):
        tree = tree.get(name, {})
    former = {old: new for old, new in moved.items() if new != {old: given[old]}}
    return tree, {".".join(old): _line(old, given[old], new) for old, new in former.items()}


def current_tensor(name: str) -> str:
    """What the tensor ``name`` of a model is called now."""
    part, dot, rest = name.partition(".")
    return f"{TENSORS.get(part, part)}{dot}{rest}"


def current_tensors(tensors: Mapping[str, V]) -> dict[str, V]:
    """``tensors`` of a model by the names they have now."""
    return {current_tensor(name): value for name, value in tensors.items()}


def _names_of_former(key: str, value: Any) -> list[Key] | None:
    """Today's names of the fields that the dotted ``key`` with ``value`` sets; None if it has no former name
    (in it, if it is a table)."""
    data: Any = value
    for name in reversed(key.split(".")):
        data = {name: data}
    moved = [({old: inner}, _current(old, inner)) for old, inner in _leaves(data)]
    if all(old == new for old, new in moved):
        return None
    return [name for _, new in moved for name, inner in new.items() if inner != {}]


def _is_switch(key: Key) -> bool:
    return callable(RECIPE_KEYS.get(".".join(key)))


def _leaves(data: dict[str, Any], section: Key = ()) -> Iterator[tuple[Key, Any]]:
    """What ``data`` sets, tables by their fields; a table is a value itself if it is empty, or a switch."""
    for name, value in data.items():
        key = (*section, name)
        if isinstance(value, dict) and value and not _is_switch(key):
            yield from _leaves(value, key)
        else:
            yield key, value


def _current(key: Key, value: Any) -> dict[Key, Any]:
    """What ``key`` with ``value`` sets today."""
    line = RECIPE_KEYS.get(".".join(key))
    if callable(line):
        return {tuple(new.split(".")): inner for new, inner in line(value).items()}
    return {_current_section(key): value}


def _current_section(key: Key) -> Key:
    """Today's name of ``key`` by its own line, or that of the innermost section that has one."""
    for end in range(len(key), 0, -1):
        line = RECIPE_KEYS.get(".".join(key[:end]))
        if isinstance(line, str):
            return (*line.split("."), *key[end:])
    return key


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    *tables, name = key.split(".")
    for table in tables:
        data = data.setdefault(table, {})
        if not isinstance(data, dict):
            raise ConfigError(f"{key}: {table} is not a table")
    data[name] = value


def _remove(data: Any, *key: str) -> None:
    *tables, name = key
    for table in tables:
        data = data.get(table) if isinstance(data, dict) else None
    if isinstance(data, dict):
        data.pop(name, None)


def _place(tree: dict[str, Any], key: Key, value: Any) -> None:
    *tables, last = key
    for name in tables:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{'.'.join(key)}: {name} is not a table")
    if value == {}:
        tree.setdefault(last, {})
    else:
        tree[last] = value


def _line(old: Key, value: Any, new: dict[Key, Any]) -> str:
    """How a key of an earlier version is answered."""
    name = ".".join(old)
    if not _is_switch(old):
        (now,) = new
        return f"{name} is called {'.'.join(now)} now"
    text = ", ".join(
        f"[{'.'.join(k)}]" if v == {} else f"{'.'.join(k)} = {json.dumps(v, default=str)}"
        for k, v in new.items()
    )
    return f"{name} = {json.dumps(value, default=str)} is written {text or 'no more'} now"
