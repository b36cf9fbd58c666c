"""Which folder a model name means, and a cheap fingerprint of it. Needs no torch."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from mmgem.errors import CheckpointError
from mmgem.files import OLD

PACKAGED = Path(__file__).parent.parent / "weights"


def resolve(name: str | os.PathLike[str]) -> Path:
    """Folder of a model: one that ships with the package, a path, or a hub id (fetched and cached).

    Raises ``CheckpointError`` if there is none.
    """
    text = os.fspath(name)
    packaged = PACKAGED / text
    if (packaged / "config.json").is_file():
        return packaged
    if complete(Path(text)).is_dir():
        return complete(Path(text))
    if text.count("/") == 1 and not text.startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(text))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(f"{text}: no such model folder, and not on the hub: {reason}") from error
    raise CheckpointError(f"{text}: no such model (a folder, a hub id, or {', '.join(packaged_models())})")


def lasting_name(name: str | os.PathLike[str]) -> str:
    """``name`` of a model so that it means the same in any working directory. Raises as :func:`resolve`."""
    folder = resolve(name)
    return str(folder.absolute()) if folder == complete(Path(name)) else os.fspath(name)


def complete(folder: Path) -> Path:
    """``folder``, or its last whole version where a kill came between the two renames that replace it."""
    whole = folder.absolute()
    old = whole.with_name(whole.name + OLD)
    return old if old.is_dir() and not folder.exists() else folder


def packaged_models() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(p.parent.name for p in PACKAGED.glob("*/config.json"))


def fingerprint(folder: Path) -> str:
    """A short hash that differs between models: configuration, and samples spread over the weight file.

    Reads at most about 2 MB, so it is cheap for large models, and needs no torch.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in ("config.json", "preprocessor.json"):
        path = folder / name
        digest.update(path.read_bytes() if path.is_file() else b"")
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise CheckpointError(f"{weights}: missing")
    size = weights.stat().st_size
    digest.update(str(size).encode())
    with weights.open("rb") as f:
        for i in range(256):
            f.seek(size * i // 256)
            digest.update(f.read(8192))
    return digest.hexdigest()
