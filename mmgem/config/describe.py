"""The fields of a recipe as documentation: docs/recipes.md, and what ``mmgem train --fields`` prints."""

from __future__ import annotations

import dataclasses
import inspect
import json
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal

from mmgem.config.checks import default_of
from mmgem.config.fields import FINITE, Fact, fact_of
from mmgem.config.former import RECIPE_KEYS
from mmgem.config.schema import Recipe
from mmgem.config.tasks import TASKS
from mmgem.errors import UsageError

_WIDTH = 100

_INTRODUCTION = """# The fields of a recipe

Made of what stands at the fields in the code. This prints the same, of one table or of all:

```
mmgem train --fields optim
```

A recipe is TOML; any field can be set on the command line as well, like `train.epochs=2`. Unknown fields and
values of another type or out of range are refused by name, and so is a field that is set to another value
than its default without what it needs. "Resume": it may change when a run that was stopped goes on.
"""


@dataclass(frozen=True)
class FieldText:
    """A field in words: full name, default, values, meaning with what it needs, and whether it may change as
    a run goes on."""

    name: str
    default: str
    values: str
    meaning: str
    free_on_resume: bool


@dataclass(frozen=True)
class Section:
    """A table of a recipe: its name, what it is for, and its fields but those of inner tables."""

    name: str
    meaning: str
    fields: tuple[FieldText, ...]


def recipe_sections(tasks: Mapping[str, Any] = TASKS) -> list[Section]:
    """All tables of a recipe, those of ``tasks`` at the end."""
    own = [part for part in _sections(Recipe, "") if part.fields]
    return own + [part for name, task in tasks.items() for part in _sections(task.Config, name)]


def own_tasks() -> dict[str, Any]:
    """The tasks of this package, without those that others have registered."""
    return {name: task for name, task in TASKS.items() if task.__module__.startswith("mmgem.")}


def chosen_sections(names: list[str], tasks: Mapping[str, Any] = TASKS) -> list[Section]:
    """Those of :func:`recipe_sections` that ``names`` mean, with their inner tables; all if there are none.

    Raises ``UsageError`` for a name that no table has.
    """
    sections = recipe_sections(tasks)
    for name in names:
        if not any(_inside(part.name, name) for part in sections):
            known = ", ".join(part.name for part in sections)
            raise UsageError(f"{name}: no table of a recipe (known: {known})")
    return [part for part in sections if not names or any(_inside(part.name, name) for name in names)]


def as_markdown(sections: list[Section]) -> str:
    """The page docs/recipes.md."""
    parts = [_INTRODUCTION]
    for section in sections:
        parts.append(f"\n## [{section.name}]\n\n{section.meaning}\n")
        if not section.fields:
            continue
        parts.append("\n| field | default | values | meaning | resume |\n|---|---|---|---|---|\n")
        for field in section.fields:
            cells = (
                f"`{field.name.rpartition('.')[2]}`",
                f"`{field.default}`" if field.default else "",
                field.values,
                field.meaning,
                "yes" if field.free_on_resume else "",
            )
            parts.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")
    parts.append("\n## Former names\n\nThese go on being read; a warning says what they are called now. ")
    parts.append("A table stands for all its fields that are not here.\n\n| once | now |\n|---|---|\n")
    parts += [f"| `{old}` | {_now(new)} |\n" for old, new in sorted(RECIPE_KEYS.items())]
    return "".join(parts)


def as_text(sections: list[Section]) -> str:
    """The same for a terminal, without the former names."""
    parts = []
    for section in sections:
        parts.append(f"[{section.name}]  {section.meaning}\n")
        for field in section.fields:
            default = f" = {field.default}" if field.default else "  (to be set)"
            resume = "; may change on resume" if field.free_on_resume else ""
            parts.append(f"  {field.name}{default}  ({field.values}{resume})\n")
            indent = " " * 6
            if field.meaning:
                parts.append(
                    textwrap.fill(field.meaning, _WIDTH, initial_indent=indent, subsequent_indent=indent)
                )
                parts.append("\n")
        parts.append("\n")
    return "".join(parts).rstrip("\n").replace("`", "") + "\n"


def _inside(section: str, name: str) -> bool:
    return f"{section}.".startswith(f"{name}.")


def _sections(cls: type, name: str, around: Fact | None = None, defaults: Any = None) -> Iterator[Section]:
    """``around``: the fact of the field that holds the table; ``defaults``: its default, if that is one."""
    hints = typing.get_type_hints(cls)
    inner: list[tuple[type, str, Fact, Any]] = []
    texts = []
    for field in dataclasses.fields(cls):
        full = f"{name}.{field.name}" if name else field.name
        fact = fact_of(field).within(around or Fact())
        default = getattr(defaults, field.name) if isinstance(defaults, cls) else default_of(field)
        table = _table(hints[field.name])
        if table is not None:
            inner.append((table, full, fact, default))
        elif name:
            texts.append(_text(full, hints[field.name], default, fact))
    yield Section(name, _first_paragraph(cls), tuple(texts))
    for part in inner:
        yield from _sections(*part)


def _table(hint: Any) -> type | None:
    """The config dataclass that a field is, or may be."""
    for kind in (hint, *_alternatives(hint)):
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            return kind
    return None


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else ()


def _first_paragraph(cls: type) -> str:
    text = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0]
    return " ".join(text.replace("``", "`").split())


def _text(name: str, hint: Any, default: Any, fact: Fact) -> FieldText:
    meaning = fact.help
    if fact.needs:
        needs = " and ".join(dict.fromkeys(need.what for need in fact.needs))
        meaning = f"{meaning} Needs {needs}.".lstrip()
    return FieldText(name, _default(default), _values(hint, fact), meaning, fact.free_on_resume)


def _default(value: Any) -> str:
    """``value`` as TOML has it; none for one that has to be set."""
    if value is MISSING:
        return ""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.5g}" if value % 1 else f"{value:.1f}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_default, value))}]"
    return json.dumps(str(value) if isinstance(value, Path) else value)


def _values(hint: Any, fact: Fact) -> str:
    """The values of a type in words, in their range."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if choices := _alternatives(hint):
        return " or ".join(_values(kind, fact) if kind is not type(None) else "none" for kind in choices)
    if origin is Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in arguments)
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"{len(arguments)} of: {_values(arguments[0], fact)}"
    if origin in (list, tuple):
        return f"list of: {_values(arguments[0], fact)}"
    if hint in (int, float):
        whole = "whole number, " if hint is int else ""
        return f"{whole}{fact.range or ('any' if hint is int else FINITE)}"
    return _WORDS.get(hint, "table")


_WORDS: dict[Any, str] = {bool: "`true`, `false`", str: "text", Path: "path"}


def _now(new: str | Callable[[Any], Mapping[str, Any]]) -> str:
    if isinstance(new, str):
        return f"`{new}`"
    tables = getattr(new, "values", {}).values()
    return (
        ", ".join(f"`{key}`" for key in sorted({key for table in tables for key in table})) or "by its value"
    )


if __name__ == "__main__":
    print(as_markdown(recipe_sections(own_tasks())), end="")
