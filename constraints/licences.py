"""Writes docs/dependencies.md: the licence of every package in requirements.lock, as the package itself says.

.venv/bin/python constraints/licences.py        # in the environment of `make install`
"""

from __future__ import annotations

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "dependencies.md"

_HEAD = """\
# Dependencies and their licences

Written by `make licences` from what the packages in [requirements.lock](../requirements.lock) say of
themselves; `make sbom` writes the same as a CycloneDX bill of materials (`sbom.json`). Nothing of them is in
this package: pip installs them. The base install needs those marked *base*; the rest belongs to extras and
to development. PyTorch (BSD-3-Clause) is in [constraints/torch.lock](../constraints/torch.lock); its build on
PyPI brings libraries of NVIDIA under NVIDIA's own terms, and triton (MIT). The wheels of pillow-heif
(extra `heif`) bring libheif and libde265 (LGPL-3.0) and x265 (GPL-2.0), those of av (extra `video`) FFmpeg
(LGPL-3.0) and encoders, libx264 and libx265 (GPL-2.0) among them: who passes them on keeps to those.

| package | version | licence | |
|---|---|---|---|
"""


def locked() -> dict[str, str]:
    """Versions by the names in requirements.lock; of those with several, for other systems, the first."""
    found: dict[str, str] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "requirements.lock").read_text(), re.M):
        found.setdefault(name, version)
    return found


def licence(package: Distribution) -> str:
    """What the metadata of a package say of its licence, on one line."""
    data = package.metadata
    if expression := data.get("License-Expression"):
        return str(expression)
    classifiers = [c.rpartition(" :: ")[2] for c in data.get_all("Classifier") or () if "License ::" in c]
    named = [c for c in classifiers if c != "OSI Approved"]
    text = (data.get("License") or "").strip()
    if named:
        return "; ".join(named)
    return text.splitlines()[0][:60] if text else "see the package"


def base_packages() -> set[str]:
    """What the base install brings, on this system."""
    found: set[str] = set()
    waiting = ["mmgem"]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            needs = distribution(name).requires or ()
        except PackageNotFoundError:
            continue
        found.add(name)
        waiting += [re.split(r"[^\w.-]", need, maxsplit=1)[0] for need in needs if "extra ==" not in need]
    return found


def table() -> str:
    """The page."""
    base, rows = base_packages(), []
    for name, version in locked().items():
        try:
            text = licence(distribution(name)).replace("|", "/")
        except PackageNotFoundError:
            text = "(not installed on this system)"
        rows.append(f"| {name} | {version} | {text} | {'base' if name in base else ''} |\n")
    return _HEAD + "".join(rows)


if __name__ == "__main__":
    OUT.write_text(table())
