"""``mmgem export``: a small copy of a model, or one that embeds faster on a CPU."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mmgem.cli.inputs import find_photos, map_photos, quiet_libraries
from mmgem.cli.output import note
from mmgem.errors import UsageError
from mmgem.utils.files import folder_bytes

if TYPE_CHECKING:
    import numpy as np

    from mmgem.data.tokens import Tokenizer
    from mmgem.models.network import MMGEMNetwork


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder or name.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; a model there is replaced.")],
    kind: Annotated[
        Literal["small", "onnx", "openvino"], typer.Option("--format", help="What to write.")
    ] = "small",
    precision: Annotated[
        Literal["float32", "bfloat16", "int8"],
        typer.Option(help="Of graphs; bfloat16: openvino only; int8: the text path only."),
    ] = "float32",
    least: Annotated[
        float | None,
        typer.Option(min=-1, max=1, metavar="C", help="Lowest cosine with torch's embeddings to accept."),
    ] = None,
    mix: Annotated[
        str | None, typer.Option(metavar="OTHER", help="small: mix the weights with those of this model.")
    ] = None,
    share: Annotated[float, typer.Option(min=0, max=1, metavar="S", help="OTHER's share of them.")] = 0.5,
    order: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="small: let the first numbers of vectors say most of these photos."),
    ] = None,
) -> None:
    """Write a copy of MODEL that is small, or that embeds faster on a CPU. Prints its folder.

    small: about a seventh of its size, the token table in 4 bits, the projections in 16, other matrices in 8.
    With --mix every weight lies between the two models': a model and the one it was trained from are often
    best in between. With --order its embeddings are turned, cosines staying as they are, so that shortened
    ones (--dimensions) lose little: DIR has photos of the kind to be searched, a thousand or more.
    onnx, openvino: a whole copy, and beside its weights graphs of how it embeds images and texts, which every
    command uses from then on. They are compared with torch on sample inputs: below cosine 0.999 (bfloat16
    and int8 0.99) nothing is written.
    """
    if kind == "small" and (precision != "float32" or least is not None):
        raise UsageError("--precision and --least are for --format onnx and openvino")
    if kind != "small" and (mix is not None or order is not None):
        raise UsageError("--mix and --order are for --format small; export its result")
    quiet_libraries()
    from mmgem.checkpoints.resolve import resolve

    if kind == "small":
        from mmgem.export.compress import ship

        embed = partial(_embed, find_photos([order])) if order is not None else None
        size = ship(resolve(model), out, resolve(mix) if mix else None, share, embed)
    else:
        from mmgem.export.write import export_graphs

        facts = export_graphs(resolve(model), out, kind, precision, least)
        agree = ", ".join(f"{name} {cosine:.5f}" for name, cosine in sorted(facts.least_cosine.items()))
        note(f"lowest cosine with torch on samples: {agree}")
        size = folder_bytes(out)
    note(f"{size / 1e6:.1f} MB")
    print(out)


def _embed(photos: list[Path], network: MMGEMNetwork, tokenizer: Tokenizer) -> np.ndarray:
    """Embeddings of those photos that can be read, (n, D) float32."""
    import numpy as np

    from mmgem.api import MMGEM

    mmgem = MMGEM(network, tokenizer)
    rows = map_photos(photos, lambda batch: list(mmgem.embed_images(batch)), "Embedding", [])
    return np.stack([row for _, row in rows])
