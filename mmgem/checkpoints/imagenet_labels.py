"""The labels of ImageNet's 1,000 classes: names from a list of synsets, kinds above them from WordNet 3.0.

WordNet is read where Debian's package ``wordnet-base`` puts it, or from the folder ``$WNHOME`` (its
``dict``).
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import tempfile
from pathlib import Path

from mmgem.errors import DownloadError

logger = logging.getLogger(__name__)

_INSTALLED = Path("/usr/share/wordnet")
_LARGEST = 400
"""Kinds of more classes than that say nothing of a photo: "artifact", "whole", "object"."""


def write_imagenet_labels(wheel: Path, out: Path) -> None:
    """Write ``labels.jsonl`` (:mod:`mmgem.data.labels`) into ``out`` from the unpacked package that lists the
    synsets of the classes, in their order, and the words for each. Without WordNet there are no kinds above
    the classes, which is a warning."""
    folder = wheel / "timm" / "data" / "_info"
    synsets = (folder / "imagenet_synsets.txt").read_text().split()
    lines = (folder / "imagenet_synset_to_lemma.txt").read_text().splitlines()
    lemmas = dict(line.split("\t", 1) for line in lines if "\t" in line)
    try:
        names, parents = _read_nouns(wordnet_nouns())
    except DownloadError as error:
        logger.warning("imagenet_labels: names of classes, but not of kinds (bird, vehicle): %s", error)
        names, parents = {}, {}
    classes = [{"id": s, "names": _distinct(lemmas[s].split(","))} for s in synsets]
    members: dict[str, list[str]] = {}
    for synset in synsets:
        for kind in _above(synset, parents):
            members.setdefault(kind, []).append(synset)
    kinds = [
        {"id": kind, "names": names[kind], "members": inside}
        for kind, inside in sorted(members.items())
        if 2 <= len(inside) <= _LARGEST
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in [*classes, *kinds])
    (out / "labels.jsonl").write_text(text, "utf-8")


def wordnet_nouns() -> str:
    """The text of WordNet's ``data.noun``: of ``$WNHOME``, of the installed package, or of the package
    fetched with ``apt-get``. Raises ``DownloadError``."""
    home = os.environ.get("WNHOME")
    places = [Path(home), Path(home) / "dict"] if home else [_INSTALLED]
    for place in places:
        if (place / "data.noun").is_file():
            return (place / "data.noun").read_text("utf-8", "replace")
    with tempfile.TemporaryDirectory() as folder:
        for command in (["apt-get", "download", "wordnet-base"], ["sh", "-c", "dpkg -x wordnet-base*.deb ."]):
            try:
                done = subprocess.run(command, cwd=folder, capture_output=True)
            except OSError:
                break
            if done.returncode:
                break
        else:
            return (Path(folder) / "usr/share/wordnet/data.noun").read_text("utf-8", "replace")
    raise DownloadError(
        "WordNet 3.0 is not here: install Debian's wordnet-base, or set WNHOME to the folder with data.noun, "
        "remove the folder in the cache and pull again"
    )


def _read_nouns(text: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Words and hypernyms of every noun synset, by "n" and its eight digits (``wndb(5WN)``)."""
    names, parents = {}, {}
    for line in text.splitlines():
        if line.startswith(" "):  # the licence
            continue
        fields = line.partition(" | ")[0].split()
        count = int(fields[3], 16)
        words = [fields[4 + 2 * i].replace("_", " ") for i in range(count)]
        pointers = fields[5 + 2 * count :]
        id_ = f"n{fields[0]}"
        names[id_] = words
        parents[id_] = [
            f"n{to}" for kind, to in zip(pointers[::4], pointers[1::4], strict=False) if kind == "@"
        ]
    return names, parents


def _above(synset: str, parents: dict[str, list[str]]) -> set[str]:
    found: set[str] = set()
    todo = list(parents.get(synset, ()))
    while todo:
        kind = todo.pop()
        if kind not in found:
            found.add(kind)
            todo += parents.get(kind, ())
    return found


def _distinct(names: list[str]) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in names if name.strip()))
