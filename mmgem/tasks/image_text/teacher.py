"""Sentence embeddings of the training captions by a frozen text teacher, for soft contrastive targets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from mmgem.checkpoints.initialize import source_folder
from mmgem.errors import CheckpointError
from mmgem.models.sentence_encoder import default_prompt, sentence_encoder
from mmgem.utils.files import cache_home
from mmgem.utils.progress import track


def embed_captions(teacher: str, section: str, texts: Sequence[str]) -> np.ndarray:
    """``(len(texts), E)`` float32 unit rows; cached on disk.

    The teacher is a transformers encoder whose token states are averaged (as all-MiniLM and e5 are used);
    before every caption stands the prompt that its folder names, "query: " for e5.
    Raises ``CheckpointError`` if it cannot be read.
    """
    folder = source_folder(teacher)
    try:
        prompt = default_prompt(folder)
    except CheckpointError as error:
        raise CheckpointError(f"{section}: {error}") from error
    key = "\n".join([str(folder), *(prompt + text for text in texts)])
    digest = hashlib.blake2b(key.encode(), digest_size=12).hexdigest()
    path = cache_home() / "teacher" / f"{digest}.npy"
    if path.exists():
        return np.asarray(np.load(path))
    try:
        encode = sentence_encoder(folder, batch=128)
    except CheckpointError as error:
        raise CheckpointError(f"{section}: {error}") from error
    chunks = [texts[i : i + 2048] for i in range(0, len(texts), 2048)]
    values = np.concatenate([encode(chunk) for chunk in track(chunks, "teacher", sizes=[*map(len, chunks)])])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.npy")
    np.save(temporary, values)
    temporary.replace(path)
    return values
