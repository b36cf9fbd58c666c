"""The labels of ImageNet's 1,000 classes: names from a list of synsets, kinds above them from WordNet 3.0.

WordNet is read where Debian's package ``wordnet-base`` puts it, or from the folder ``$WNHOME`` (its
``dict``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import subprocess
import tempfile
from pathlib import Path

from mmgem.errors import DownloadError
from mmgem.utils.text_files import read_text

logger = logging.getLogger(__name__)

_INSTALLED = Path("/usr/share/wordnet")
_SHA256 = "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2"  # of WordNet 3.0's data.noun
# Packages that the system's own keys have signed, whatever its settings allow.
_APT = (
    "apt-get",
    "-o",
    "APT::Get::AllowUnauthenticated=false",
    "-o",
    "Acquire::AllowInsecureRepositories=false",
)
_LARGEST = 400
"""Kinds of more classes than that say nothing of a photo: "artifact", "whole", "object"."""


def write_imagenet_labels(wheel: Path, out: Path) -> None:
    """Write ``labels.jsonl`` (:mod:`mmgem.data.labels`) into ``out`` from the unpacked package that lists the
    synsets of the classes, in their order, and the words for each. Without WordNet there are no kinds above
    the classes, which is a warning."""
    folder = wheel / "timm" / "data" / "_info"
    synsets = read_text(folder / "imagenet_synsets.txt").split()
    lines = read_text(folder / "imagenet_synset_to_lemma.txt").splitlines()
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
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(OSError, subprocess.SubprocessError):
        _run([*_APT, "download", "wordnet-base"], folder)
        for package in Path(folder).glob("wordnet-base*.deb"):
            _run(["dpkg-deb", "--extract", str(package), "content"], folder)  # unpacks, runs nothing
            data = (Path(folder) / "content/usr/share/wordnet/data.noun").read_bytes()
            if hashlib.sha256(data).hexdigest() != _SHA256:
                raise DownloadError("wordnet-base: its data.noun is not that of WordNet 3.0")
            return data.decode("utf-8", "replace")
    raise DownloadError(
        "WordNet 3.0 is not here: install Debian's wordnet-base, or set WNHOME to the folder with data.noun, "
        "remove the folder in the cache and pull again"
    )


def _run(command: list[str], folder: str) -> None:
    subprocess.run(command, cwd=folder, capture_output=True, check=True)


def _read_nouns(text: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Words and hypernyms of every noun synset, by "n" and its eight digits (``wndb(5WN)``)."""
    names, parents = {}, {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith(" "):  # the licence
            continue
        fields = line.partition(" | ")[0].split()
        try:
            count = int(fields[3], 16)
            words = [fields[4 + 2 * i].replace("_", " ") for i in range(count)]
        except (IndexError, ValueError) as error:
            raise DownloadError(f"data.noun:{number}: not a line of WordNet's") from error
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
