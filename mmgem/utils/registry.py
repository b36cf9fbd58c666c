"""What can be chosen by name, here and in other packages: tasks, encoders, connectors, stores.

Ours are named by where they lie and imported when they are asked for; those of other packages are entry
points of a group, or registered by a plugin (``mmgem --plugin FILE``, see :mod:`mmgem.utils.plugins`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from mmgem.errors import ConfigError
from mmgem.utils.plugins import load_named_plugins

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Things of one kind by name. ``registry["x"]`` imports what ``x`` is; a name that nobody registered is a
    ``ConfigError`` that lists those there are."""

    def __init__(self, kind: str, builtin: Mapping[str, str], group: str):
        """``kind``: a word for messages; ``builtin``: names and where they lie, ``package.module:object``;
        ``group``: of entry points (``[project.entry-points."mmgem.tasks"]`` of another package)."""
        self.kind, self.group = kind, group
        self._places = dict(builtin)
        self._made: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorate what is to be found as ``name``. Raises ``ConfigError`` for a name that is taken."""

        def add(thing: T) -> T:
            if name in self._places or self._made.get(name, thing) is not thing:
                raise ConfigError(f"{self.kind} {name!r}: the name is taken")
            self._made[name] = thing
            return thing

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self._made and name not in self._places:
            load_named_plugins()
        if name not in self._made:
            if name not in self._places:
                self._places |= {e.name: e.value for e in entry_points(group=self.group)}
            if name not in self._places:
                raise ConfigError(
                    f"no {self.kind} is called {name!r} (known: {', '.join(sorted(self))}); "
                    "one of your own is made known by --plugin"
                )
            module, _, attribute = self._places[name].partition(":")
            self._made[name] = getattr(import_module(module), attribute)
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in set(self)

    def __iter__(self) -> Iterator[str]:
        load_named_plugins()
        outside = {e.name for e in entry_points(group=self.group)}
        return iter(sorted(self._made.keys() | self._places.keys() | outside))

    def __len__(self) -> int:
        return sum(1 for _ in self)
