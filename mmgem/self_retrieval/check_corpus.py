"""Look at everything of a corpus on disk."""

from __future__ import annotations

from pathlib import Path

from mmgem.checkpoints.check_model import check_files
from mmgem.errors import MMGEMError
from mmgem.self_retrieval.corpus import Corpus
from mmgem.utils.checkup import Checkup

_REMEDY = "copy the corpus again, or train it again"


def check_corpus(folder: Path) -> Checkup:
    """Read the corpus in ``folder`` and compare its files with their checksums and with each other."""
    found = Checkup("corpus")
    whole = [check_files(part, found, _REMEDY) for part in (folder, folder / "titles", folder / "rows")]
    if not all(whole):
        return found
    try:
        corpus = Corpus.open(folder)
    except MMGEMError as error:
        found.add(folder, str(error).removeprefix(f"{folder}: "), _REMEDY)
        return found
    found.counts = {"passages": len(corpus.passages), "titles": len(corpus.titles)}
    for name, trie, count in (
        ("titles", corpus.title_trie, len(corpus.titles)),
        ("rows", corpus.passage_trie, len(corpus.passages)),
    ):
        if sorted(trie.ids.tolist()) != list(range(count)):
            found.add(folder / name, "its ids are not those of the corpus", _REMEDY)
    return found
