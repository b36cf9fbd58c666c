"""Embeddings of texts by a frozen text teacher: for soft contrastive targets, or to be learned themselves."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np

from mmgem.checkpoints.initialize import source_folder
from mmgem.checkpoints.model_folder import load_model
from mmgem.checkpoints.resolve import own_folder
from mmgem.errors import CheckpointError
from mmgem.inference.texts import embed_texts
from mmgem.models.text_tower import Encode, teacher_prompt, text_teacher
from mmgem.utils.files import cache_home
from mmgem.utils.locks import lock_folder
from mmgem.utils.progress import track

_AT_ONCE = 128
_CHUNK = 2048  # texts between two commits: what a kill loses


def embed_captions(teacher: str, section: str, texts: Sequence[str]) -> np.ndarray:
    """``(len(texts), E)`` float32 unit rows; each text's row is kept on disk, whatever texts come with it.

    The teacher is a model of ours, the text tower of a CLIP or SigLIP checkpoint
    (:mod:`mmgem.models.text_tower`), or a transformers encoder whose token states are averaged (as all-MiniLM
    and e5 are used); before every caption stands the prompt that its folder names, "query: " for e5.
    Raises ``CheckpointError`` if it cannot be read.
    """
    own = own_folder(teacher)
    folder = own or source_folder(teacher)
    try:
        prompt = teacher_prompt(folder) if own is None else ""
        path = cache_home() / "teacher" / f"{_digest(_stamp(folder), prompt).hex()}.sqlite"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Who waits for the lock finds what he would have computed.
        with lock_folder(path), closing(sqlite3.connect(path, timeout=60)) as rows:
            rows.execute("create table if not exists rows (text blob primary key, row blob) without rowid")
            return _embed(rows, texts, lambda: _load(folder, own is not None))
    except CheckpointError as error:
        raise CheckpointError(f"{section}: {error}") from error


def _load(folder: Path, ours: bool) -> Encode:
    if not ours:
        return text_teacher(folder, _AT_ONCE)
    network, tokenizer = load_model(folder)
    if not network.embeds:
        raise CheckpointError(f"{folder}: a model of kind {network.config.kind!r} has no embeddings")
    return partial(embed_texts, network.eval(), tokenizer, batch=_AT_ONCE)


def _embed(
    rows: sqlite3.Connection,
    texts: Sequence[str],
    load: Callable[[], Encode],
) -> np.ndarray:
    keys = [_digest(text) for text in texts]
    stored = {key: _row(rows, key) for key in dict.fromkeys(keys)}
    found = {key: row for key, row in stored.items() if row is not None}
    new = {key: text for key, text in zip(keys, texts, strict=True) if key not in found}
    if new:
        encode = load()
        # Texts of like length together: a batch is as long as its longest.
        order = sorted(new, key=lambda key: len(new[key]))
        chunks = [order[at : at + _CHUNK] for at in range(0, len(order), _CHUNK)]
        for chunk in track(chunks, "teacher", sizes=[*map(len, chunks)]):
            values = encode([new[key] for key in chunk])
            with rows:
                pairs = [(key, value.tobytes()) for key, value in zip(chunk, values, strict=True)]
                rows.executemany("insert or replace into rows values (?, ?)", pairs)
            found.update(zip(chunk, values, strict=True))
    return np.stack([found[key] for key in keys])


def _row(rows: sqlite3.Connection, key: bytes) -> np.ndarray | None:
    got = rows.execute("select row from rows where text = ?", (key,)).fetchone()
    return None if got is None else np.frombuffer(got[0], np.float32)


def _stamp(folder: Path) -> str:
    """What tells a teacher's files from those that lay there before."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return str(folder) + "".join(f"\n{p} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files)


def _digest(*parts: str) -> bytes:
    return hashlib.blake2b("\n".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()
