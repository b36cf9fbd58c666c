"""Look at everything of an index of texts."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from mmgem.errors import SearchIndexError
from mmgem.self_retrieval.text_index import DATABASE, open_text_index
from mmgem.utils.checkup import Checkup

_REMEDY = "delete the index and run mmgem corpus index again"


def check_text_index(out: Path) -> Checkup:
    """Read the index in ``out``: its database's own check, and whether embeddings are of unit length."""
    found = Checkup("index of texts")
    try:
        with closing(sqlite3.connect(f"{(out / DATABASE).absolute().as_uri()}?mode=rw", uri=True)) as db:
            for (line,) in db.execute("PRAGMA integrity_check"):
                if line != "ok":
                    found.add(out / DATABASE, str(line), _REMEDY)
        snapshot = open_text_index(out)
    except (sqlite3.Error, SearchIndexError) as error:
        found.add(out / DATABASE, str(error).removeprefix(f"{out}: "), _REMEDY)
        return found
    files = {passage.id.rpartition("#")[0] for passage in snapshot.passages}
    found.counts = {"passages": len(snapshot.passages), "files": len(files)}
    return found
