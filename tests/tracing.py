"""ONNX graphs of a model that has been traced before are copied; tracing takes seconds."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from mmgem.export import graphs
from mmgem.models.network import MMGEMNetwork


def write_once(folder: Path) -> Callable[[MMGEMNetwork, Sequence[int], Path], None]:
    """A ``write_onnx`` that keeps what it has written in ``folder``, by weights, sides and size of file."""

    def write(network: MMGEMNetwork, sides: Sequence[int], out: Path) -> None:
        known = hashlib.sha256(repr((network.config, sorted(sides), graphs._LARGE)).encode())
        for name, value in network.state_dict().items():
            known.update(name.encode() + value.numpy().tobytes())
        kept = folder / known.hexdigest()
        if not kept.exists():
            made = Path(tempfile.mkdtemp(dir=folder))
            graphs.write_onnx(network, sides, made)
            with contextlib.suppress(OSError):  # another process may have been faster
                made.rename(kept)
        shutil.copytree(kept, out, dirs_exist_ok=True)

    return write
