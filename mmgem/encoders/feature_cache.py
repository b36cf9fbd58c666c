"""Fills the feature cache: a frozen encoder sees each image once.

Maps of the encoder's frozen part are kept as one memory-mapped float16 array per view, in a folder named by
the hash of everything they depend on (weights, preprocessing, the whole content of the images, view). Filling
resumes where it stopped; an image that cannot be read is marked, reported and left out of training. One that
could not be read now (memory, rights, the disk) is left out of this run and tried again by the next. A map is
on the disk, finite and with a checksum before it counts as done.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mmgem.config import Preprocessing, to_dict
from mmgem.data.content_hashes import ContentHashes, Identity
from mmgem.data.features import FeatureCache
from mmgem.data.pictures import Frame, Picture, open_pictures
from mmgem.data.transforms import normalise, to_square, view_geometry
from mmgem.encoders.base import Encoder
from mmgem.errors import DataError, ImageError, TransientImageError, is_transient_reason
from mmgem.utils.files import write_atomic
from mmgem.utils.progress import track

_CHUNK = 32
_BAD, _TODO, _DONE = 2, 0, 1
_FLUSH_SECONDS = 5.0
HASHES = "hashes.json"
"""What :class:`~mmgem.data.content_hashes.ContentHashes` remembers, in the folder of the cache."""


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
    images: Sequence[Picture],
    folder: Path,
    views: int = 1,
    crop_scale: float = 0.5,
    dtype: torch.dtype = torch.float32,
) -> FeatureCache:
    """Compute what is missing, in ``dtype``, and return the cache for ``images`` (order kept). One that is
    there several times (a record a caption, a set listed twice to be seen more often) is computed once;
    frames of a clip that follow each other are decoded together.

    Raises ``DataError`` if no image can be read.
    """
    if not images:
        raise DataError("no images to compute features of")
    identities = _identities(images, folder)
    # An unreadable file has no content to be known by; its path tells it from others.
    keys = [repr(p) if i[1] == -1 else json.dumps(i) for p, i in zip(images, identities, strict=True)]
    firsts: dict[str, int] = {}
    for at, key in enumerate(keys):
        firsts.setdefault(key, at)
    numbers = {key: row for row, key in enumerate(firsts)}
    rows = [numbers[key] for key in keys]
    images, identities = [images[at] for at in firsts.values()], [identities[at] for at in firsts.values()]
    plain = to_dict(prep)
    pixels = {name: plain[name] for name in ("size", "mean", "std", "resize", "interpolation")}
    base = {
        "encoder": encoder_fingerprint(encoder),
        "prep": pixels,
        "images": identities,
    }
    if dtype != torch.float32:
        base["dtype"] = str(dtype)
        encoder = copy.deepcopy(encoder).to(dtype)
    maps, crcs, states, problems = [], [], [], {}
    for view in range(views):
        key = json.dumps({**base, "view": view, "crop_scale": crop_scale if view > 1 else None})
        name = hashlib.blake2b(key.encode(), digest_size=12).hexdigest()
        values, sums, state, bad = _fill(encoder, prep, images, folder / name, view, crop_scale, views)
        maps.append(values)
        crcs.append(sums)
        states.append(state)
        problems.update(bad)
    bad_rows = np.any([s != _DONE for s in states], axis=0)
    valid = np.flatnonzero(~bad_rows[rows]).tolist()
    if not valid:
        raise DataError(
            f"none of the {len(images)} images can be read; first: {next(iter(problems.values()))}"
        )
    return FeatureCache(
        maps, valid, list(problems.values()), crcs, None if len(firsts) == len(rows) else rows
    )


def _identities(images: Sequence[Picture], folder: Path) -> list[Identity | list[str | int | float]]:
    """What tells each picture from others: its file's identity, and the second of a frame."""
    paths = list(dict.fromkeys(picture.path if isinstance(picture, Frame) else picture for picture in images))
    of = dict(zip(paths, ContentHashes(folder / HASHES).identities(paths), strict=True))
    return [[*of[p.path], p.time] if isinstance(p, Frame) else of[p] for p in images]


def _fill(
    encoder: Encoder,
    prep: Preprocessing,
    images: Sequence[Picture],
    folder: Path,
    view: int,
    crop_scale: float,
    views: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[int, str]]:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "problems.json"
    problems = {int(k): v for k, v in json.loads(log.read_text()).items()} if log.exists() else {}
    device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        dtype = next((p.dtype for p in encoder.parameters()), torch.float32)
        probe = torch.zeros(1, 3, prep.size, prep.size, device=device, dtype=dtype)
        shape = (len(images), *encoder.frozen_stem(probe).shape[1:])
    values = _open(folder / "maps.npy", shape, np.float16)
    crcs = _open(folder / "crc32.npy", (len(images),), np.uint32)
    state = _open(folder / "state.npy", (len(images),), np.uint8)
    for row in [row for row, text in problems.items() if is_transient_reason(text.rpartition(": ")[2])]:
        del problems[row]  # earlier versions kept them
        if state[row] == _BAD:
            state[row] = _TODO
    transient: dict[int, str] = {}
    done: list[int] = []
    flushed = time.monotonic()

    def leave_out(row: int, problem: str) -> None:
        problems[row] = problem
        write_atomic(log, json.dumps(problems))
        state[row] = _BAD

    todo = np.flatnonzero(state == _TODO).tolist()
    chunks = [todo[i : i + _CHUNK] for i in range(0, len(todo), _CHUNK)]
    decoded = open_pictures([images[row] for row in todo])
    try:
        for rows in track(chunks, f"features, view {view + 1} of {views}", sizes=[len(c) for c in chunks]):
            pixels, good = [], []
            for row, image in zip(rows, decoded, strict=False):
                if isinstance(image, TransientImageError):
                    transient[row] = str(image)
                    continue
                if isinstance(image, ImageError):
                    leave_out(row, str(image))
                    continue
                pixels.append(to_square(image, prep, view_geometry(view, images[row].name, crop_scale)))
                good.append(row)
            if good:
                with torch.inference_mode():
                    maps = encoder.frozen_stem(normalise(np.stack(pixels), prep).to(device, dtype))
                rounded = maps.half().cpu().numpy()
                values[good] = rounded
                for row, row_values in zip(good, rounded, strict=True):
                    if np.isfinite(row_values).all():
                        crcs[row] = zlib.crc32(row_values.tobytes())
                        done.append(row)
                    else:
                        leave_out(row, f"{images[row]}: its features are not finite in float16")
            if time.monotonic() - flushed > _FLUSH_SECONDS:
                _settle(values, crcs, state, done)
                done, flushed = [], time.monotonic()
    finally:
        _settle(values, crcs, state, done)
    return values, crcs, state, problems | transient


def _settle(values: np.memmap, crcs: np.memmap, state: np.memmap, rows: list[int]) -> None:
    """Mark ``rows`` as done, once what they hold is on the disk."""
    if rows:
        values.flush()
        crcs.flush()
        state[rows] = _DONE
    state.flush()


def _open(path: Path, shape: tuple[int, ...], dtype: type) -> np.memmap:
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
