"""The two embedding paths as ONNX graphs.

    image-SIDE.onnx   pixels (B, 3, SIDE, SIDE) -> maps (B, h, w, C), vectors (B, D)
    text.onnx         ids (B, L) int64, lengths (B,) int64 -> vectors (B, D)

Everything is float32 unless said, and vectors are not normalised. One image graph a side: shapes known ahead
are faster, and any encoder can be traced. Texts are padded, not packed: row i holds ``lengths[i]`` ids, then
at least one free place, which ``[EMB]`` takes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmgem.errors import UsageError
from mmgem.export.run import needs_extra
from mmgem.models.network import MMGEMNetwork
from mmgem.utils.progress import doing

_OPSET = 20
_LARGE = 1 << 30  # bytes of weights: ONNX files of more than 2 GB cannot hold them


class ImageGraph(nn.Module):
    """Pixels -> feature maps and whole-image embeddings."""

    def __init__(self, network: MMGEMNetwork):
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, 3, S, S)`` float, normalised -> ``(B, h, w, C)`` and ``(B, D)``."""
        maps = self.network.encoder(pixels)
        return maps, self.network.image_embeddings(self.network.encode_image(maps))


class TextGraph(nn.Module):
    """Token ids -> text embeddings: :meth:`MMGEMNetwork.text` on padded rows."""

    def __init__(self, network: MMGEMNetwork):
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """``(B, L)`` and ``(B,)`` int64, every length below L -> ``(B, D)``."""
        network, config = self.network, self.network.config
        places = torch.arange(ids.shape[1], device=ids.device)
        last = lengths[:, None]
        inputs = torch.where((places == last)[..., None], network.emb_token, network.llm.embed(ids))
        allowed = (places <= last)[:, None]
        if config.attention == "causal":
            allowed = allowed & (places[:, None] >= places)
        else:
            allowed = allowed.expand(-1, ids.shape[1], -1)
        states = network.llm(inputs, places.expand(len(ids), -1), allowed)
        if config.text_pool == "emb":
            return network.text_projection(states[torch.arange(len(ids), device=ids.device), lengths])
        kept = (places <= last)[..., None].to(states)
        return network.text_projection((states * kept).sum(1) / kept.sum(1))


def write_onnx(network: MMGEMNetwork, sides: Sequence[int], folder: Path) -> None:
    """Write ``text.onnx`` and an ``image-SIDE.onnx`` for each of ``sides`` (pixels) into ``folder``.

    Weights of more than 1 GB go into a file beside the graph. Raises ``UsageError`` if the packages it needs
    are missing, or the model cannot be traced.
    """
    if not network.plain_embedding:
        raise network.refuse("cannot be exported as graphs")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise needs_extra(error) from error
    rows: Any = torch.export.Dim.DYNAMIC
    for side in sides:
        pixels = {"pixels": torch.zeros(2, 3, side, side)}
        path = folder / f"image-{side}.onnx"
        with doing(f"image graph, {side} pixels"):
            _write(ImageGraph(network), pixels, {"pixels": {0: rows}}, ["maps", "vectors"], path)
    texts = {"ids": torch.zeros(3, 9, dtype=torch.int64), "lengths": torch.tensor([8, 5, 2])}
    shapes = {"ids": {0: rows, 1: rows}, "lengths": {0: rows}}
    with doing("text graph"):
        _write(TextGraph(network), texts, shapes, ["vectors"], folder / "text.onnx")


def _write(
    graph: nn.Module, inputs: dict[str, Tensor], shapes: dict[str, Any], outputs: list[str], path: Path
) -> None:
    with quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                graph.eval(),
                tuple(inputs.values()),
                dynamo=True,
                input_names=list(inputs),
                output_names=outputs,
                dynamic_shapes=shapes,
                opset_version=_OPSET,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise UsageError(f"this model cannot be written as ONNX: {reason}") from error
        assert program is not None
        size = sum(p.numel() * p.element_size() for p in graph.parameters())
        program.save(str(path), external_data=size > _LARGE)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep exporters, which tell their developers a lot, from telling users."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
