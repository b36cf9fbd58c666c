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
        Literal["small", "full", "adapter", "onnx", "openvino"],
        typer.Option("--format", help="What to write."),
    ] = "small",
    precision: Annotated[
        Literal["float32", "bfloat16", "int8"],
        typer.Option(help="Of graphs; bfloat16: openvino only; int8: the text path only."),
    ] = "float32",
    min_cosine: Annotated[
        float | None,
        typer.Option(min=-1, max=1, metavar="C", help="Lowest cosine with torch's embeddings to accept."),
    ] = None,
    average: Annotated[
        str | None,
        typer.Option(metavar="OTHER", help="small, full: average the weights with those of this model."),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(min=0, max=1, metavar="A", help="OTHER's share of them; 0.5.")
    ] = None,
    pca_rotate: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="small, full: rotate the space so that the first numbers say most of these photos.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="LLM", help="adapter: the LLM MODEL began from, a pulled name, folder or id."),
    ] = None,
    rank: Annotated[int, typer.Option(min=1, metavar="R", help="adapter: highest rank of a change.")] = 64,
    # Their names until 0.1.
    least: Annotated[float | None, typer.Option(min=-1, max=1, hidden=True)] = None,
    mix: Annotated[str | None, typer.Option(hidden=True)] = None,
    share: Annotated[float | None, typer.Option(min=0, max=1, hidden=True)] = None,
    order: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Write a copy of MODEL that is small, or that embeds faster on a CPU. Prints its folder.

    small: about a seventh of its size, the token table in 4 bits, the projections in 16, other matrices in 8.
    With --average every weight lies between the two models': a model and the one it was trained from are
    often best in between. With --pca-rotate its embeddings are rotated, cosines staying as they are, so that
    shortened ones (--dimensions) lose little: DIR has photos of the kind to be searched, a thousand or more.
    A corpus that MODEL has learned goes with it.
    full: the same in float32, such as an average that training goes on from.
    adapter: only what MODEL, trained by LoRA, has beside the LLM that it began from; full makes a model of
    that and the LLM again.
    onnx, openvino: a whole copy, and beside its weights graphs of how it embeds images and texts, which every
    command uses from then on. They are compared with torch on sample inputs: below cosine 0.999 (bfloat16
    and int8 0.99) nothing is written.
    """
    min_cosine = least if min_cosine is None else min_cosine
    average, pca_rotate = average or mix, pca_rotate or order
    alpha = share if alpha is None else alpha
    graphs = kind in ("onnx", "openvino")
    if not graphs and (precision != "float32" or min_cosine is not None):
        raise UsageError("--precision and --min-cosine are for --format onnx and openvino")
    if graphs and (average is not None or pca_rotate is not None):
        raise UsageError("--average and --pca-rotate are for --format small and full; export their result")
    if alpha is not None and average is None:
        raise UsageError("--alpha needs --average")
    if (kind == "adapter") != (base is not None):
        raise UsageError("--format adapter and --base go together")
    quiet_libraries()
    from mmgem.checkpoints.resolve import resolve
    from mmgem.export.adapter import compose_model, is_adapter, write_adapter

    if base is not None:
        size = write_adapter(resolve(model), base, out, rank)
    elif is_adapter(Path(model)):
        if kind != "full" or average is not None or pca_rotate is not None:
            raise UsageError(f"{model}: is an adapter; make a model of it first, with --format full")
        size = compose_model(Path(model), out)
    elif kind == "onnx" or kind == "openvino":
        from mmgem.export.write import export_graphs

        info = export_graphs(resolve(model), out, kind, precision, min_cosine)
        agree = ", ".join(f"{name} {cosine:.5f}" for name, cosine in sorted(info.min_cosine.items()))
        note(f"lowest cosine with torch on samples: {agree}")
        size = folder_bytes(out)
    else:
        from mmgem.export.compress import compress_model

        embed = partial(_embed, find_photos([pca_rotate])) if pca_rotate is not None else None
        other = resolve(average) if average else None
        share_of_other = 0.5 if alpha is None else alpha
        size = compress_model(resolve(model), out, other, share_of_other, embed, quantize=kind == "small")
    note(f"{size / 1e6:.1f} MB")
    print(out)


def _embed(photos: list[Path], network: MMGEMNetwork, tokenizer: Tokenizer) -> np.ndarray:
    """Embeddings of those photos that can be read, (n, D) float32."""
    import numpy as np

    from mmgem.api import MMGEM

    mmgem = MMGEM(network, tokenizer)
    rows = map_photos(photos, lambda batch: list(mmgem.embed_images(batch)), "Embedding", [])
    return np.stack([row for _, row in rows])
