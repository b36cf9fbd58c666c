"""Graphs in the place of the torch modules that embed: an encoder and a text path that run ONNX or OpenVINO.

Boxes, regions and heat maps come from the encoder's maps, so they use the graphs too. Captions, scores and
reranking stay in torch, on the same weights. As many threads as torch uses (``OMP_NUM_THREADS``).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mmgem.checkpoints.resolve import fingerprint
from mmgem.config import from_dict, to_dict
from mmgem.encoders.base import Encoder
from mmgem.errors import CheckpointError, ConfigError, UsageError
from mmgem.models.network import MMGEMNetwork
from mmgem.utils.checksums import file_crc32
from mmgem.utils.files import write_atomic
from mmgem.utils.model_files import read_json_object

Kind = Literal["onnx", "openvino"]
Precision = Literal["float32", "bfloat16", "int8"]
Backend = Literal["auto", "torch", "onnx", "openvino"]

_FOLDER = "graphs"
_INFO = "graphs.json"
_SUFFIX = {"onnx": ".onnx", "openvino": ".xml"}
_TEXTS_AT_ONCE = 32  # texts of like length: padding them costs little

Graph = Callable[[dict[str, np.ndarray], str], np.ndarray]
"""Inputs by name and the name of the output wanted -> that output."""


@dataclass
class ExportedGraphInfo:
    """What the graphs of a model folder are; kept beside them."""

    kind: Kind
    precision: Precision
    sides: list[int]
    """Of the input of the image graphs, pixels."""
    min_cosine: dict[str, float]
    """Of embeddings with those of torch on samples when they were written: ``images``, ``texts``."""
    weights: str
    """:func:`~mmgem.checkpoints.resolve.fingerprint` of the model they were made from."""
    checksums: dict[str, int] = field(default_factory=dict)
    """CRC-32 of each file; none: an earlier version wrote them."""

    def save(self, folder: Path) -> None:
        """Write them into the folder of the graphs, with the checksums of the graphs there."""
        files = sorted(file for file in folder.iterdir() if file.name != _INFO)
        self.checksums = {file.name: file_crc32(file) for file in files}
        write_atomic(folder / _INFO, json.dumps(to_dict(self), indent=1) + "\n")


def graph_folder(model: Path) -> Path:
    """Where the graphs of a model folder are, if it has any."""
    return model / _FOLDER


def wanted_graphs(model: Path, backend: Backend, device: str) -> ExportedGraphInfo | None:
    """The graphs to run for ``backend``; None: torch alone. ``auto`` takes them where there are some and
    ``device`` is the CPU.

    Raises ``CheckpointError`` if there are none of the kind asked for, or they were made from other weights
    than those beside them; ``UsageError`` for another device.
    """
    if backend not in ("auto", "torch", "onnx", "openvino"):
        raise UsageError(f"backend must be auto, torch, onnx or openvino, not {backend!r}")
    path = graph_folder(model) / _INFO
    if backend == "torch" or (backend == "auto" and (device != "cpu" or not path.exists())):
        return None
    if device != "cpu":
        raise UsageError(f"backend {backend!r} runs on the CPU, not on {device!r}")
    info = None
    try:
        if path.exists():
            info = from_dict(ExportedGraphInfo, _renamed(read_json_object(path)), "graphs")
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if info is None or backend not in ("auto", info.kind):
        raise CheckpointError(f"{model}: no {backend} graphs; mmgem export {model} DIR --format {backend}")
    if info.weights != fingerprint(model):
        raise CheckpointError(
            f"{path.parent}: the model beside these graphs is not the one they were made from; write them "
            f"anew with mmgem export {model} DIR --format {info.kind}, or remove them"
        )
    return info


def _renamed(info: Any) -> Any:
    """What graphs of 0.1 say, by today's names."""
    if isinstance(info, dict) and "least_cosine" in info:
        info["min_cosine"] = info.pop("least_cosine")
    return info


def damaged_graphs(model: Path, info: ExportedGraphInfo) -> list[str]:
    """Names of the files of a model's graphs that are missing or not as their checksums say."""
    folder = graph_folder(model)
    return [
        name
        for name, crc in info.checksums.items()
        if not (folder / name).is_file() or file_crc32(folder / name) != crc
    ]


def use_graphs(network: MMGEMNetwork, model: Path, info: ExportedGraphInfo) -> None:
    """Let ``network`` embed by the graphs of its model folder; its own encoder is dropped.

    Raises ``UsageError`` if the package that runs them is missing, ``CheckpointError`` if one is damaged.
    """
    folder, suffix = graph_folder(model), _SUFFIX[info.kind]
    if damaged := damaged_graphs(model, info):
        raise CheckpointError(f"{folder / damaged[0]}: damaged; write the graphs anew with mmgem export")
    if network.encoder.channels:
        paths = {side: folder / f"image-{side}{suffix}" for side in info.sides}
        network.encoder = GraphEncoder(network.encoder, paths, info.precision)
    network.text_graph = GraphTexts(open_graph(folder / f"text{suffix}", info.precision), network.config.dim)


class GraphEncoder(Encoder):
    """An encoder that is one graph a side; each is opened when it is first needed."""

    def __init__(self, like: Encoder, paths: dict[int, Path], precision: Precision):
        super().__init__()
        self.channels, self.size, self.aligned = like.channels, like.size, like.aligned
        self.paths, self.precision = paths, precision
        self.opened: dict[int, Graph] = {}

    def frozen_stem(self, pixels: Tensor) -> Tensor:
        """The whole encoder. Raises ``CheckpointError`` for a side there is no graph of."""
        side = pixels.shape[-1]
        if side not in self.paths:
            raise CheckpointError(f"no graph reads images of {side} pixels, only {list(self.paths)}")
        if side not in self.opened:
            self.opened[side] = open_graph(self.paths[side], self.precision)
        return torch.from_numpy(self.opened[side]({"pixels": pixels.numpy()}, "maps"))


class GraphTexts:
    """Token ids to embeddings by a graph, as :meth:`MMGEMNetwork.encode_text` does."""

    def __init__(self, graph: Graph, dim: int):
        self.graph, self.dim = graph, dim

    def __call__(self, ids: Sequence[Tensor]) -> Tensor:
        """n token sequences, 1-D int64 -> ``(n, D)`` float32, not normalised."""
        out = np.empty((len(ids), self.dim), np.float32)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        for at in range(0, len(order), _TEXTS_AT_ONCE):
            rows = order[at : at + _TEXTS_AT_ONCE]
            lengths = np.array([len(ids[i]) for i in rows])
            padded = np.zeros((len(rows), lengths[-1] + 1), np.int64)
            for row, i in enumerate(rows):
                padded[row, : lengths[row]] = ids[i].numpy()
            out[rows] = self.graph({"ids": padded, "lengths": lengths}, "vectors")
        return torch.from_numpy(out)


def needs_extra(error: ImportError, otherwise: str = "") -> UsageError:
    """What to tell a user who lacks a library of the extra ``export``."""
    return UsageError(f"graphs need {error.name}: pip install 'mmgem[export]'{otherwise}")


def open_graph(path: Path, precision: Precision) -> Graph:
    """A function that runs the graph of a file. ``precision``: what OpenVINO computes in; an ONNX graph says
    so itself. Raises ``CheckpointError``, and ``UsageError`` if the package it needs is missing."""
    try:
        return _open_onnx(path) if path.suffix == _SUFFIX["onnx"] else _open_openvino(path, precision)
    except ImportError as error:
        raise needs_extra(error, " (or backend='torch')") from error
    except Exception as error:  # the libraries have no common one
        raise CheckpointError(f"{path}: {str(error).strip().splitlines()[0]}") from error


def _open_onnx(path: Path) -> Graph:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Between two runs its threads would keep the cores from what decodes the next pictures.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs, output: session.run([output], inputs)[0]


def _open_openvino(path: Path, precision: Precision) -> Graph:
    import openvino

    options: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
    }
    compiled = openvino.Core().compile_model(str(path), "CPU", options)
    lock = threading.Lock()  # a compiled model runs one request at a time

    def run(inputs: dict[str, np.ndarray], output: str) -> np.ndarray:
        with lock:
            return compiled(inputs)[output]

    return run
