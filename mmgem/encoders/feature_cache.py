"""Fills the feature cache: a frozen encoder sees each image once.

Maps of the encoder's frozen part are kept as one memory-mapped float16 array per view, in a folder named by
the hash of everything they depend on (weights, preprocessing, image contents, view). Filling resumes where it
stopped; an image that cannot be read is marked, reported and left out of training.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mmgem.config import Preprocessing, to_dict
from mmgem.data.features import FeatureCache, image_identity
from mmgem.data.images import open_image
from mmgem.data.transforms import normalise, to_square, view_geometry
from mmgem.encoders.base import Encoder
from mmgem.errors import DataError, ImageError
from mmgem.utils.progress import track

_CHUNK = 32
_BAD, _TODO, _DONE = 2, 0, 1


def encoder_fingerprint(encoder: Encoder) -> str:
    """Hash of the weights that :meth:`Encoder.frozen_stem` depends on; where there are none, of the encoder's
    modules and of the numbers and words it holds."""
    digest = hashlib.blake2b(digest_size=16)
    parameters = encoder.frozen_parameters()
    if not parameters:
        settings = {k: v for k, v in sorted(vars(encoder).items()) if isinstance(v, int | float | str)}
        settings.pop("training")
        digest.update(f"{type(encoder).__qualname__} {settings} {encoder}".encode())
    for p in parameters:
        digest.update(p.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def cache_features(
    encoder: Encoder,
    prep: Preprocessing,
    images: Sequence[Path],
    folder: Path,
    views: int = 1,
    crop_scale: float = 0.5,
    dtype: torch.dtype = torch.float32,
) -> FeatureCache:
    """Compute what is missing, in ``dtype``, and return the cache for ``images`` (order kept).

    Raises ``DataError`` if no image can be read.
    """
    if not images:
        raise DataError("no images to compute features of")
    plain = to_dict(prep)
    pixels = {name: plain[name] for name in ("size", "mean", "std", "resize", "interpolation")}
    base = {
        "encoder": encoder_fingerprint(encoder),
        "prep": pixels,
        "images": [image_identity(p) for p in images],
    }
    if dtype != torch.float32:
        base["dtype"] = str(dtype)
        encoder = copy.deepcopy(encoder).to(dtype)
    maps, states, problems = [], [], {}
    for view in range(views):
        key = json.dumps({**base, "view": view, "crop_scale": crop_scale if view > 1 else None})
        name = hashlib.blake2b(key.encode(), digest_size=12).hexdigest()
        values, state, bad = _fill(encoder, prep, images, folder / name, view, crop_scale, views)
        maps.append(values)
        states.append(state)
        problems.update(bad)
    bad_rows = np.any([s == _BAD for s in states], axis=0)
    valid = np.flatnonzero(~bad_rows).tolist()
    if not valid:
        raise DataError(
            f"none of the {len(images)} images can be read; first: {next(iter(problems.values()))}"
        )
    return FeatureCache(maps, valid, list(problems.values()))


def _fill(
    encoder: Encoder,
    prep: Preprocessing,
    images: Sequence[Path],
    folder: Path,
    view: int,
    crop_scale: float,
    views: int,
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "problems.json"
    problems = {int(k): v for k, v in json.loads(log.read_text()).items()} if log.exists() else {}
    device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        dtype = next((p.dtype for p in encoder.parameters()), torch.float32)
        probe = torch.zeros(1, 3, prep.size, prep.size, device=device, dtype=dtype)
        shape = (len(images), *encoder.frozen_stem(probe).shape[1:])
    values = _open(folder / "maps.npy", shape, np.float16)
    state = _open(folder / "state.npy", (len(images),), np.uint8)
    todo = np.flatnonzero(state == _TODO).tolist()
    chunks = [todo[i : i + _CHUNK] for i in range(0, len(todo), _CHUNK)]
    for rows in track(chunks, f"features, view {view + 1} of {views}", sizes=[len(c) for c in chunks]):
        pixels, good = [], []
        for row in rows:
            try:
                image = open_image(images[row])
            except ImageError as error:
                problems[row] = str(error)
                temporary = log.with_suffix(".tmp")
                temporary.write_text(json.dumps(problems))
                temporary.replace(log)
                state[row] = _BAD
                continue
            pixels.append(to_square(image, prep, view_geometry(view, images[row].name, crop_scale)))
            good.append(row)
        if good:
            with torch.inference_mode():
                maps = encoder.frozen_stem(normalise(np.stack(pixels), prep).to(device, dtype))
            values[good] = maps.half().cpu().numpy()
            state[good] = _DONE
    return values, state, problems


def _open(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    if path.exists():
        try:
            found = np.lib.format.open_memmap(path, "r+")
        except ValueError as error:
            raise DataError(f"{path}: damaged feature cache ({error}); delete the folder") from error
        if found.shape == shape:
            return found
    temporary = path.with_suffix(".tmp")
    np.lib.format.open_memmap(temporary, "w+", dtype, shape).flush()
    temporary.replace(path)
    return np.lib.format.open_memmap(path, "r+")
