"""In which fields two configurations differ."""

from __future__ import annotations

from typing import Any


def difference(old: Any, new: Any, where: str = "") -> list[str]:
    """Names of the fields in which two plain config dicts differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted(old.keys() | new.keys())
        return [f for n in names for f in difference(old.get(n), new.get(n), f"{where}.{n}" if where else n)]
    return [] if old == new else [where]
