"""The text tower of a CLIP or SigLIP checkpoint as a teacher: its own embeddings of texts of any length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmgem.data.sentences import split_sentences
from mmgem.encoders.dual_checkpoint import DualCheckpoint, is_dual, load_dual
from mmgem.errors import CheckpointError
from mmgem.models.sentence_encoder import default_prompt, sentence_encoder
from mmgem.utils.pretrained import load_tokenizer, local_folder

Encode = Callable[[Sequence[str]], np.ndarray]


def text_teacher(folder: Path, batch: int) -> Encode:
    """A function from n texts to unit rows ``(n, E)`` float32: the text tower of a checkpoint that has two,
    else a sentence encoder. Raises ``CheckpointError``."""
    return text_tower(folder, batch) if is_dual(local_folder(folder)) else sentence_encoder(folder, batch)


def teacher_prompt(folder: Path) -> str:
    """What a teacher wants before every text."""
    found = local_folder(folder)
    return "" if is_dual(found) else default_prompt(found)


def text_tower(source: Path, batch: int = 32) -> Encode:
    """A function from n texts to unit rows ``(n, D)`` float32, the checkpoint's own embeddings.

    A text of more tokens than the tower reads is the mean of its sentences' unit embeddings, and a sentence
    of more that of its halves. Raises ``CheckpointError``.
    """
    import torch
    import torch.nn.functional as F

    folder = local_folder(source)
    dual, tokenizer = load_dual(folder), load_tokenizer(folder)
    rows = dual.model.config.text_config.vocab_size
    if max(tokenizer.get_vocab().values()) >= rows:
        raise CheckpointError(f"{folder}: the tokenizer has ids beyond the model's table of {rows} rows")
    if tokenizer.pad_token_id is None and dual.pads_texts:
        raise CheckpointError(f"{folder}: the tokenizer has no token to pad with")

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> np.ndarray:
        pieces = [list(_pieces(tokenizer, dual.max_tokens, text)) for text in texts]
        ids = [piece for own in pieces for piece in own]
        owner = torch.tensor([n for n, own in enumerate(pieces) for _ in own])
        order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
        embedded = torch.empty(len(ids), 0)
        for at in range(0, len(order), batch):
            chosen = order[at : at + batch]
            unit = F.normalize(dual.embed_texts(_padded(dual, tokenizer, [ids[n] for n in chosen])), dim=-1)
            if not embedded.shape[1]:
                embedded = torch.empty(len(ids), unit.shape[1])
            embedded[chosen] = unit
        total = torch.zeros(len(texts), embedded.shape[1]).index_add(0, owner, embedded)
        return F.normalize(total, dim=-1).numpy()

    return encode


def _padded(dual: DualCheckpoint, tokenizer: Any, ids: list[list[int]]) -> Any:
    """``(B, L)`` int64. CLIP looks no further than the end of a text, SigLIP was trained on padded ones."""
    import torch

    length = dual.max_tokens if dual.pads_texts else max(map(len, ids))
    pad = tokenizer.pad_token_id or 0
    return torch.tensor([[*own, *[pad] * (length - len(own))] for own in ids])


def _pieces(tokenizer: Any, limit: int, text: str) -> Iterator[list[int]]:
    """Token ids, special ones with them, of a text; of one over ``limit`` those of its parts."""
    ids: list[int] = tokenizer(text)["input_ids"]
    if len(ids) <= limit:
        yield ids
        return
    parts = split_sentences(text)
    if len(parts) < 2:
        words = text.split()
        middle = len(words) // 2
        parts = [" ".join(words[:middle]), " ".join(words[middle:])] if middle else _halves(text)
    for part in parts:
        yield from _pieces(tokenizer, limit, part)


def _halves(word: str) -> list[str]:
    """A word without spaces, which some languages write sentences as."""
    return [word[: len(word) // 2], word[len(word) // 2 :]]
