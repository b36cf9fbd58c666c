"""Write a model folder that has graphs beside its weights, and make sure that they give the same embeddings.

Notable choices. OpenVINO's graphs are made from the ONNX ones, so there is one translation of each path.
int8 rounds the matrices of the text path alone, in blocks of 32 with a scale each: with one scale for all of
a text's activations SmolLM2's outliers cost far too much (cosine 0.8), and an encoder in int8 falls to 0.94.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mmgem.checkpoints.model_folder import load_model, replace_model
from mmgem.checkpoints.model_lock import lock_if_same
from mmgem.checkpoints.resolve import fingerprint
from mmgem.data.tokens import Tokenizer
from mmgem.errors import CheckpointError, UsageError
from mmgem.export.graphs import quiet, write_onnx
from mmgem.export.run import ExportedGraphInfo, Kind, Precision, graph_folder, needs_extra, use_graphs
from mmgem.inference.images import encode_feature_maps
from mmgem.inference.pyramid import input_sizes
from mmgem.inference.texts import embed_texts, unit_rows
from mmgem.models.network import MMGEMNetwork
from mmgem.utils.progress import doing

MIN_COSINE = {"float32": 0.999, "bfloat16": 0.99, "int8": 0.99}

_BLOCK = 32

_SAMPLES = (
    "a dog",
    "Two dogs run through deep snow.",
    "A man in a red jacket climbs a steep rock wall above the sea.",
    "children playing football on a wet field",
    "The old woman sells flowers at the corner of a busy street.",
    "a black cat asleep on a windowsill beside a potted plant",
    "An empty road leads to mountains under dark clouds.",
    "Three cyclists race past a crowd waving flags.",
    "a bowl of noodle soup with an egg, seen from above",
    "A girl in a yellow dress blows soap bubbles in the garden.",
    "people waiting for a train at night",
    "The surfer falls off his board into the foaming wave.",
    "a red double-decker bus crossing a bridge",
    "A brown horse looks over a wooden fence, and a foal stands behind it.",
    "How many planets of the solar system have rings?",
    "A musician plays the violin on stage. Behind him is a large screen. The hall is full.",
)


def export_graphs(
    source: Path,
    out: Path,
    kind: Kind,
    precision: Precision = "float32",
    min_cosine: float | None = None,
    traced: Path | None = None,
) -> ExportedGraphInfo:
    """Write a copy of model folder ``source`` with graphs to ``out``; a model there is replaced as a whole.

    ``min_cosine``: the lowest cosine of an embedding with torch's that is accepted, of sample texts and
    pictures; None: ``MIN_COSINE``. ``traced``: a folder of :func:`write_onnx` of this model, else it is made.
    Raises ``CheckpointError`` if a cosine is lower, or the model cannot be loaded; ``UsageError`` if a
    package is missing, or for bfloat16 in ONNX, which runs there nowhere.
    """
    if kind == "onnx" and precision == "bfloat16":
        raise UsageError("bfloat16 is for openvino; onnx has float32 and int8")
    with lock_if_same(source, out):
        return _export_graphs(source, out, kind, precision, min_cosine, traced)


def _export_graphs(
    source: Path,
    out: Path,
    kind: Kind,
    precision: Precision,
    min_cosine: float | None,
    traced: Path | None,
) -> ExportedGraphInfo:
    network, tokenizer = load_model(source)
    sides = input_sizes(tokenizer.prep) if network.encoder.channels else []

    def fill(new: Path) -> None:
        shutil.copytree(
            source, new, ignore=shutil.ignore_patterns(graph_folder(source).name), dirs_exist_ok=True
        )
        graphs = graph_folder(new)
        if traced is None:
            graphs.mkdir()
            write_onnx(network, sides, graphs)
        else:
            shutil.copytree(traced, graphs)
        if precision == "int8":
            _round_matrices(graphs / "text.onnx")
        if kind == "openvino":
            _to_openvino(graphs)
        info.min_cosine = _agreement(network, tokenizer, new, info)
        _check(info, MIN_COSINE[precision] if min_cosine is None else min_cosine)
        info.save(graphs)

    info = ExportedGraphInfo(kind, precision, sides, {}, fingerprint(source))
    replace_model(out, fill)
    return info


@doing("rounding the text graph")
def _round_matrices(path: Path) -> None:
    """Round the matrices of an ONNX graph to 8 bits, in place."""
    try:
        import onnx
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    except ImportError as error:
        raise needs_extra(error) from error
    with quiet():
        # Accuracy level 4: activations are rounded too, block by block, so that int8 instructions apply.
        rounding = MatMulNBitsQuantizer(
            onnx.load(str(path)), bits=8, block_size=_BLOCK, is_symmetric=True, accuracy_level=4
        )
        rounding.process()
        files = list(path.parent.glob(f"{path.name}*"))
        for file in files:
            file.unlink()
        rounding.model.save_model_to_file(str(path), use_external_data_format=len(files) > 1)


@doing("turning graphs into OpenVINO's")
def _to_openvino(folder: Path) -> None:
    """Turn the ONNX graphs of ``folder`` into OpenVINO's; float matrices are stored as float16."""
    try:
        import openvino
    except ImportError as error:
        raise needs_extra(error) from error
    with quiet():
        for path in sorted(folder.glob("*.onnx")):
            openvino.save_model(openvino.convert_model(str(path)), str(path.with_suffix(".xml")))
            for file in folder.glob(f"{path.name}*"):
                file.unlink()


@doing("comparing with torch")
def _agreement(
    network: MMGEMNetwork, tokenizer: Tokenizer, model: Path, info: ExportedGraphInfo
) -> dict[str, float]:
    """The lowest cosine of torch's embeddings and the graphs', of texts and of pictures at each side."""
    own = _embeddings(network, tokenizer, info.sides)
    other, _ = load_model(model)
    use_graphs(other, model, info)
    graphs = _embeddings(other, tokenizer, info.sides)
    return {name: float((rows * graphs[name]).sum(1).min()) for name, rows in own.items()}


@torch.inference_mode()
def _embeddings(network: MMGEMNetwork, tokenizer: Tokenizer, sides: Sequence[int]) -> dict[str, np.ndarray]:
    found = {"texts": embed_texts(network, tokenizer, _SAMPLES, len(_SAMPLES))}
    if sides:
        seen = [
            network.encode_image(encode_feature_maps(network, tokenizer.prep, _pictures(), side))
            for side in sides
        ]
        found["images"] = unit_rows(network.image_embeddings(torch.cat(seen)))
    return found


def _pictures() -> list[Image.Image]:
    """Four blurred patterns of many colours, coarse to fine."""
    rng = np.random.default_rng(0)
    cells = [rng.integers(0, 256, (n, n, 3), np.uint8) for n in (3, 6, 12, 24)]
    return [Image.fromarray(c).resize((256, 256), Image.Resampling.BICUBIC) for c in cells]


def _check(info: ExportedGraphInfo, min_cosine: float) -> None:
    for name, cosine in info.min_cosine.items():
        if not cosine >= min_cosine:
            raise CheckpointError(
                f"{name} of the {info.precision} graphs agree with torch to cosine {cosine:.4f} only, "
                f"below {min_cosine:g}; --min-cosine {max(cosine - 0.001, 0):.3f} accepts that"
            )
