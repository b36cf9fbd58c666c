"""Questions the model writes itself, for passages that nobody has asked about.

Sampled behind the passage as the ask objective learns them; any LLM can do it before it has learned anything,
better ones better. What does not end in a question mark within ``_MAX_TOKENS`` tokens is thrown away.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mmgem.models.kv_cache import BatchedKVCache
from mmgem.models.llm import LLM
from mmgem.self_retrieval.passages import Passage, Query, load_queries
from mmgem.self_retrieval.prompts import Prompts
from mmgem.utils.files import cache_home, write_atomic
from mmgem.utils.locks import lock_folder
from mmgem.utils.progress import track

_MAX_TOKENS = 40
_TOP_K = 20
_TEMPERATURE = 0.8


@torch.inference_mode()
def generate_queries(
    llm: LLM, prompts: Prompts, passages: Sequence[Passage], count: int, seed: int, device: torch.device
) -> list[Query]:
    """Up to ``count`` different questions for each passage, without answers; the same with each ``seed``."""
    queries: list[Query] = []
    for n, passage in enumerate(track(list(passages), "Writing questions", unit=" passages")):
        title, text = prompts.pieces([passage.title, passage.text])
        rows = BatchedKVCache.empty(llm, 1, device)
        rows.append([[*prompts.document(title, text), *prompts.then_question]])
        sample_seed = int(np.random.SeedSequence((seed, n)).generate_state(1)[0])
        generator = torch.Generator().manual_seed(sample_seed)
        questions = _sample_questions(rows.select([0] * count), prompts, generator)
        distinct = dict.fromkeys(question for question in questions if question is not None)
        queries += [Query(f"{passage.id}?{i}", q, (passage.id,), ()) for i, q in enumerate(distinct)]
    return queries


def cached_generated_queries(
    llm: LLM, prompts: Prompts, passages: Sequence[Passage], count: int, seed: int, model: str
) -> list[Query]:
    """:func:`generate_queries`, kept in the user's cache by ``model`` (its name), its weights, passages,
    count and seed."""
    weights = hashlib.blake2b(digest_size=16)
    for parameter in llm.parameters():
        weights.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    texts = [[p.id, p.title, p.text] for p in passages]
    key = json.dumps([model, weights.hexdigest(), count, seed, texts])
    name = hashlib.blake2b(key.encode(), digest_size=12).hexdigest()
    path: Path = cache_home() / "questions" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock_folder(path):  # who waits for the lock finds what he would have written
        if not path.exists():
            device = next(llm.parameters()).device
            queries = generate_queries(llm, prompts, passages, count, seed, device)
            lines = [
                json.dumps({"id": q.id, "query": q.query, "positives": list(q.positives)}) for q in queries
            ]
            write_atomic(path, "".join(f"{line}\n" for line in lines))
    return load_queries(path) if path.stat().st_size else []


def _sample_questions(rows: BatchedKVCache, prompts: Prompts, generator: torch.Generator) -> list[str | None]:
    sampled: list[list[int]] = [[] for _ in range(len(rows.last))]
    finished = [False] * len(sampled)
    for _ in range(_MAX_TOKENS):
        top_logits, top_tokens = (rows.llm.logits(rows.last).float() / _TEMPERATURE).topk(_TOP_K)
        choices = torch.multinomial(top_logits.softmax(-1).cpu(), 1, generator=generator)
        next_tokens = top_tokens.cpu().gather(1, choices)[:, 0].tolist()
        for i, token in enumerate(next_tokens):
            if not finished[i]:
                sampled[i].append(token)
                finished[i] = "?" in prompts.text([token])
        if all(finished):
            break
        rows.append([[] if finished[i] else [token] for i, token in enumerate(next_tokens)])
    return [
        " ".join(prompts.text(ids).split()) if complete else None
        for ids, complete in zip(sampled, finished, strict=True)
    ]
