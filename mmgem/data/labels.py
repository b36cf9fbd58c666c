"""The names of a classifier's classes, and the kinds above them: ``labels.jsonl``.

One JSON object a line. First the classes, in the order of the classifier's outputs::

    {"id": "n02123045", "names": ["tabby", "tabby cat"]}

then, optionally, kinds of several classes each (of which one may be inside another)::

    {"id": "n02121808", "names": ["domestic cat", "house cat"], "members": ["n02123045", "n02123159"]}

``id`` may be any string that occurs once; without one it is the first name. The first name is the usual one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmgem.data.text_lines import line_error, read_lines
from mmgem.data.texts import half_character
from mmgem.errors import DataError


@dataclass(frozen=True)
class LabelSet:
    """``names``: of each class, the usual one first. ``kind_names``: of each kind; ``kind_members``:
    ``(kinds, classes)`` bool."""

    names: tuple[tuple[str, ...], ...]
    kind_names: tuple[tuple[str, ...], ...]
    kind_members: np.ndarray

    def disjoint_kinds(self, rng: np.random.Generator, most: int) -> list[int]:
        """At most ``most`` kinds of which no two share a class, at random."""
        chosen: list[int] = []
        covered = np.zeros(len(self.names), bool)
        for kind in rng.permutation(len(self.kind_names)).tolist():
            if len(chosen) == most:
                break
            if not (covered & self.kind_members[kind]).any():
                covered |= self.kind_members[kind]
                chosen.append(kind)
        return chosen


def label_set(names: Sequence[str]) -> LabelSet:
    """A set of classes with a name each, or several with commas between, and no kinds above."""
    split = tuple(tuple(part.strip() for part in name.split(",") if part.strip()) for name in names)
    return LabelSet(split, (), np.zeros((0, len(names)), bool))


def read_labels(path: str | os.PathLike[str]) -> LabelSet:
    """Read a file of labels. Raises DataError ("file:line: ...") for a malformed line, and UsageError for a
    file that cannot be read."""
    path = Path(path)
    classes: list[tuple[str, ...]] = []
    kinds: list[tuple[str, ...]] = []
    members: list[list[int]] = []
    numbers: dict[str, int] = {}
    for number, line in read_lines(path):
        try:
            value = json.loads(line)
            names, id_ = _named(value)
            if "members" in value:
                kinds.append(names)
                members.append(_numbers_of(value["members"], numbers))
                continue
            if kinds:
                raise ValueError("classes come before kinds (lines with members)")
            if id_ in numbers:
                raise ValueError(f"id {id_!r} occurs twice")
        except (ValueError, RecursionError) as error:
            raise line_error(path, number, error) from error
        numbers[id_] = len(classes)
        classes.append(names)
    if not classes:
        raise DataError(f"{path}: no classes")
    table = np.zeros((len(kinds), len(classes)), bool)
    for row, columns in zip(table, members, strict=True):
        row[columns] = True
    return LabelSet(tuple(classes), tuple(kinds), table)


def _named(value: Any) -> tuple[tuple[str, ...], str]:
    if not isinstance(value, dict):
        raise ValueError("must be one JSON object")
    if unknown := value.keys() - {"id", "names", "members"}:
        raise ValueError(f"unknown key {min(unknown)!r}; there are id, names and members")
    names = value.get("names")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n.strip() for n in names):
        raise ValueError('names must be a list of names, like ["tabby", "tabby cat"]')
    if problem := next(filter(None, map(half_character, names)), None):
        raise ValueError(f"names {problem}")
    id_ = value.get("id", names[0])
    if not isinstance(id_, str):
        raise ValueError("id must be a string")
    return tuple(names), id_


def _numbers_of(members: Any, numbers: dict[str, int]) -> list[int]:
    if not isinstance(members, list) or not members:
        raise ValueError("members must be a list of ids of classes")
    for member in members:
        if not isinstance(member, str) or member not in numbers:
            raise ValueError(f"members: no class has the id {member!r}")
    return [numbers[member] for member in members]
