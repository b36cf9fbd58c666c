"""Which folder a model name means, what its config says, and a cheap fingerprint of it. Needs no torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from mmgem.config import ModelConfig, Preprocessing, from_dict
from mmgem.config.checks import check_ranges
from mmgem.config.legacy import current_config
from mmgem.errors import CheckpointError, ConfigError, MissingModelError
from mmgem.utils.checksums import CHECKSUMS_FILE
from mmgem.utils.files import OLD, cache_home
from mmgem.utils.hf_config import check_sizes
from mmgem.utils.model_files import check_file, read_json_object
from mmgem.utils.pretrained import hub_folder
from mmgem.utils.safetensors_files import Header, read_header

PACKAGED = Path(__file__).parent.parent / "weights"

FORMAT = 1  # of config.json
ADAPTER = "adapter.json"
"""Of a folder that has what a model changed of its base LLM: what base that is."""
_SAMPLES, _SAMPLE = 16, 4096  # of a large tensor: how many, bytes of each


def resolve(name: str | os.PathLike[str]) -> Path:
    """Folder of a model: one that ships with the package, a path, or a hub id, ``owner/name`` or
    ``owner/name@revision`` (fetched and cached; JSON, text and safetensors alone). One that ships as an
    adapter is in the cache once it has been pulled.

    Raises ``CheckpointError`` if there is none.
    """
    text = os.fspath(name)
    if (folder := _local(text)).is_dir():
        if not (folder / "config.json").exists() and (folder / "model" / "config.json").is_file():
            raise CheckpointError(f"{text}: the folder of a training run; its model is {folder / 'model'}")
        return folder
    if packaged_adapter(text) is not None:
        raise MissingModelError(
            f"{text}: ships as what it has beside its LLM; mmgem pull {text} makes it whole"
        )
    if text.partition("@")[0].count("/") == 1 and not text.startswith((".", "/", "~")):
        try:
            return hub_folder(text)
        except CheckpointError as error:
            raise CheckpointError(
                f"{text}: no such model folder, and {str(error).partition(': ')[2]}"
            ) from error
    raise MissingModelError(f"{text}: no such model (a folder, a hub id, or {', '.join(packaged_models())})")


def own_folder(name: str) -> Path | None:
    """The folder, packaged or on this machine, of the model of ours that ``name`` means; None without one."""
    folder = _local(name)
    return folder if is_model(folder) else None


def _local(name: str) -> Path:
    """The packaged model of that name, or the folder."""
    packaged = PACKAGED / name
    if (packaged / "config.json").is_file():
        return packaged
    adapter = packaged_adapter(name)
    return complete(Path(name) if adapter is None else composed_folder(adapter))


def packaged_adapter(name: str) -> Path | None:
    """The folder of the adapter of that name that ships with the package, None if there is none."""
    folder = PACKAGED / name
    return folder if Path(name).name == name and (folder / ADAPTER).is_file() else None


def composed_folder(adapter: Path) -> Path:
    """Where the model that a packaged adapter and its base LLM make is, once it has been pulled."""
    sums = hashlib.blake2b((adapter / CHECKSUMS_FILE).read_bytes(), digest_size=6).hexdigest()
    return cache_home() / "models" / f"{adapter.name}-{sums}"


def is_model(folder: Path) -> bool:
    """Whether a model of ours lies in a folder, as far as its ``config.json`` says."""
    try:
        return {"format", "model"} <= read_json_object(folder / "config.json").keys()
    except CheckpointError:
        return False


def lasting_name(name: str | os.PathLike[str]) -> str:
    """``name`` of a model so that it means the same in any working directory. Raises as :func:`resolve`."""
    folder = resolve(name)
    return str(folder.absolute()) if folder == complete(Path(name)) else os.fspath(name)


def complete(folder: Path) -> Path:
    """``folder``, or its last whole version where a kill came between the two renames that replace it."""
    current = folder.absolute()
    old = current.with_name(current.name + OLD)
    return old if old.is_dir() and not folder.exists() else folder


def packaged_models() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(p.parent.name for file in ("config.json", ADAPTER) for p in PACKAGED.glob(f"*/{file}"))


def read_config(folder: Path, file: str = "config.json") -> tuple[ModelConfig, Preprocessing]:
    """What the model in a folder is, by its ``file``, and how its inputs are prepared. Raises
    ``CheckpointError``."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such model folder")
    raw = read_json_object(folder / file)
    if raw.get("format") != FORMAT:
        raise CheckpointError(f"{folder / file}: format {raw.get('format')!r}, this version reads {FORMAT}")
    try:
        config = from_dict(ModelConfig, current_config(raw.get("model"), "model")[0], "model")
        prep = current_config(read_json_object(folder / "preprocessor.json"), "preprocessing")[0]
        preprocessing = from_dict(Preprocessing, prep, "preprocessor")
        check_ranges(config, "model")
        check_ranges(preprocessing, "preprocessing")
        check_sizes(config.llm.config, "model.llm.config")
        check_sizes(config.encoder.config, "model.encoder.config")
        return config, preprocessing
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:  # a table where none can be
        raise CheckpointError(f"{folder}: {file}: not the fields of a model ({error})") from error


def fingerprint(folder: Path) -> str:
    """A short hash that differs between models: configuration, tokenizer, and every tensor of the weights.

    Tensors of up to 64 KB are read whole, larger ones at 16 places: training shows in whichever tensor it
    changed, and a large model takes little longer than a small one. Needs no torch. Raises
    ``CheckpointError`` if there is no weight file, or it is damaged.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in ("config.json", "preprocessor.json", "tokenizer.json"):
        path = folder / name
        if path.exists():
            check_file(path)
        digest.update(path.read_bytes() if path.exists() else b"")
    weights = folder / "model.safetensors"
    header = read_header(weights)
    with weights.open("rb") as file:
        for start, length in _samples(header):
            file.seek(start)
            digest.update(file.read(length))
    return digest.hexdigest()


def _samples(header: Header) -> Iterator[tuple[int, int]]:
    """Start and length, in bytes, of what to read of a safetensors file: header and samples of tensors."""
    yield 0, header.size
    for begin, end in sorted((tensor.begin, tensor.end) for tensor in header.tensors.values()):
        if end - begin <= _SAMPLES * _SAMPLE:
            yield begin, end - begin
        else:
            step = (end - begin - _SAMPLE) / (_SAMPLES - 1)
            yield from ((begin + int(step * i), _SAMPLE) for i in range(_SAMPLES))
