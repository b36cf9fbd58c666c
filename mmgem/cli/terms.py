"""The terms of a model's weights, said once to the person who uses it."""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
from pathlib import Path

from mmgem.cli.output import json_wanted, note
from mmgem.utils.files import cache_home

_FIELD = re.compile(r"^(license|license_name|license_link):\s*(.+?)\s*$", re.MULTILINE)


def card_licence(card: str) -> str | None:
    """The licence that the front matter of a model card names: ``license_name`` if there is one, else
    ``license``; None if it says nothing."""
    if not card.startswith("---\n"):
        return None
    fields = {name: value.strip("'\"") for name, value in _FIELD.findall(card[4:].partition("\n---")[0])}
    return fields.get("license_name") or fields.get("license")


def note_terms(name: str) -> None:
    """Say on standard error which licence the model ``name`` names for its weights and where to read it: at
    a terminal, without ``--json``, and once for every model and licence, which the cache folder remembers."""
    if json_wanted() or not (sys.stderr.isatty() and sys.stdout.isatty()):
        return
    from mmgem.checkpoints.hub import read_card
    from mmgem.checkpoints.resolve import resolve

    folder = resolve(name)
    licence = card_licence(read_card(folder))
    if licence is None:
        return
    key = f"{folder.resolve()}\n{licence}"
    said = cache_home() / "terms" / hashlib.blake2b(key.encode(errors="replace"), digest_size=12).hexdigest()
    if said.exists():
        return
    note(f"the weights of {Path(name).name} are under {licence}; see {folder / 'README.md'}")
    with contextlib.suppress(OSError):  # said again then
        said.parent.mkdir(parents=True, exist_ok=True)
        said.touch()
