"""Sentence embeddings of the training captions by a frozen text teacher, for soft contrastive targets."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from mmgem.config import Recipe
from mmgem.errors import CheckpointError, ConfigError
from mmgem.files import cache_home
from mmgem.progress import track
from mmgem.train.start import source_folder


def embed_captions(recipe: Recipe, texts: Sequence[str]) -> np.ndarray:
    """``(len(texts), E)`` float32 unit rows; cached on disk.

    The teacher is a transformers encoder whose token states are averaged (as all-MiniLM is used).
    Raises ``ConfigError`` without a teacher, ``CheckpointError`` if it cannot be read.
    """
    if recipe.objective.teacher is None:
        raise ConfigError('objective.teacher: soft_targets needs a teacher, e.g. "minilm"')
    folder = source_folder(str(recipe.objective.teacher))
    digest = hashlib.blake2b("\n".join([str(folder), *texts]).encode(), digest_size=12).hexdigest()
    path = cache_home() / "teacher" / f"{digest}.npy"
    if path.exists():
        return np.asarray(np.load(path))
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer, model = AutoTokenizer.from_pretrained(str(folder)), AutoModel.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"objective.teacher: {folder}: {str(error).splitlines()[0]}") from error
    out = []
    chunks = [texts[i : i + 128] for i in range(0, len(texts), 128)]
    for chunk in track(chunks, "teacher", sizes=[len(c) for c in chunks]):
        batch = tokenizer(chunk, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            states = model.eval()(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        out.append(F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1).numpy())
    values = np.concatenate(out).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.npy")
    np.save(temporary, values)
    temporary.replace(path)
    return values
