"""Writes lowest.txt: the lowest release of everything that pyproject.toml allows, for CI to install and test.

python constraints/lowest.py
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

FOLDER = Path(__file__).parent
OUT = FOLDER / "lowest.txt"


def lowest() -> str:
    """The text of lowest.txt. Raises ``ValueError`` for a requirement without a lower bound, and for two
    bounds of one package."""
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())["project"]
    extras = {name: needs for name, needs in project["optional-dependencies"].items() if name != "dev"}
    pins: dict[str, str] = {}
    for requirement in [*project["dependencies"], *(need for needs in extras.values() for need in needs)]:
        if requirement.startswith("mmgem["):
            continue
        found = re.fullmatch(r"([\w.-]+)(\[[\w,]+\])?>=([\d.]+)(,<[\d.]+)?", requirement)
        if found is None:
            raise ValueError(f"{requirement}: has no lower bound")
        name, version = found[1], found[3]
        if pins.setdefault(name, version) != version:
            raise ValueError(f"{name}: has two lower bounds, {pins[name]} and {version}")
    head = "# Written by constraints/lowest.py from the lower bounds in pyproject.toml.\n"
    return head + "".join(f"{name}=={version}\n" for name, version in sorted(pins.items()))


if __name__ == "__main__":
    OUT.write_text(lowest())
