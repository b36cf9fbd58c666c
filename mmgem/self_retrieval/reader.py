"""The model as reranker and reader: a passage and a question in, how well they fit and the answer out.

    query_likelihood  log P(question | passage), summed over its tokens: how well the passage explains it
    reject_prob       P("cannot extract answer" | passage, question): Self-Retrieval's assessment

A passage is read once and its keys and values are kept (float16), least recently used ones first to go; a
question costs only its own tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmgem.models.kv_cache import BatchedKVCache, KeyValues
from mmgem.models.llm import LLM
from mmgem.self_retrieval.passages import Passage
from mmgem.self_retrieval.prompts import Prompts


@dataclass(frozen=True)
class ReaderScores:
    """What the model thinks of passages ``(n,)`` for a question; float64."""

    query_likelihood: np.ndarray
    reject_prob: np.ndarray


class Reader:
    """Scores and answers from passages, which are named by their numbers."""

    def __init__(
        self,
        llm: LLM,
        prompts: Prompts,
        passages: Sequence[Passage],
        device: torch.device,
        cache_bytes: int = 1 << 30,
    ):
        self.llm, self.prompts, self.passages, self.device = llm, prompts, passages, device
        self.cache_bytes = cache_bytes
        self._cache: OrderedDict[int, KeyValues] = OrderedDict()
        self._bytes = 0

    @torch.inference_mode()
    def score_passages(self, question: str, passages: Sequence[int], batch_size: int = 32) -> ReaderScores:
        """Score passages (their numbers in the corpus) for a question."""
        (ids,) = self.prompts.pieces([question])
        continuation = [*self.prompts.asking(ids), *self.prompts.rejection]
        question_start = len(self.prompts.then_question)
        reject_start = len(continuation) - len(self.prompts.rejection)
        targets = torch.tensor(continuation[1:], device=self.device)
        query_likelihood, reject_prob = [], []
        for start in range(0, len(passages), batch_size):
            batch = passages[start : start + batch_size]
            states = self._rows(batch).append([continuation] * len(batch))
            for part in states[:, :-1].split(8):  # the head's output is large
                log_probs = self.llm.logits(part).float().log_softmax(-1)
                log_probs = log_probs.gather(2, targets.expand(len(part), -1)[..., None])[..., 0].double()
                query_likelihood.append(
                    log_probs[:, question_start - 1 : question_start - 1 + len(ids)].sum(1)
                )
                reject_prob.append(log_probs[:, reject_start - 1 :].sum(1).exp())
        empty = torch.zeros(0)
        return ReaderScores(
            torch.cat([*query_likelihood, empty]).cpu().numpy(),
            torch.cat([*reject_prob, empty]).cpu().numpy(),
        )

    @torch.inference_mode()
    def answer(
        self,
        question: str,
        passage: int,
        max_tokens: int = 32,
        abandoned: Callable[[], bool] | None = None,
    ) -> tuple[str | None, float]:
        """The likeliest answer, word by word, of ``max_tokens`` at most, and the mean log-probability of its
        tokens; None where the model says that the passage holds none. ``abandoned``: asked at every step
        whether nobody waits for the answer any more; it is cut there."""
        (ids,) = self.prompts.pieces([question])
        rows = self._rows([passage])
        rows.append([self.prompts.asking(ids)])
        token_ids: list[int] = []
        log_prob = 0.0
        while True:
            log_probs = self.llm.logits(rows.last).float().log_softmax(-1)[0]
            token = int(log_probs.argmax())
            log_prob += float(log_probs[token])
            if token == self.prompts.end or len(token_ids) == max_tokens:
                break
            if abandoned is not None and abandoned():
                break
            token_ids.append(token)
            rows.append([[token]])
        if [*token_ids, self.prompts.end] == self.prompts.rejection:
            return None, log_prob / (len(token_ids) + 1)
        return self.prompts.text(token_ids), log_prob / (len(token_ids) + 1)

    def _rows(self, passages: Sequence[int]) -> BatchedKVCache:
        return BatchedKVCache.load(self.llm, [self._document(n) for n in passages], self.device)

    def _document(self, n: int) -> KeyValues:
        if n in self._cache:
            self._cache.move_to_end(n)
            return self._cache[n]
        passage = self.passages[n]
        title, text = self.prompts.pieces([passage.title, passage.text])
        rows = BatchedKVCache.empty(self.llm, 1, self.device)
        rows.append([self.prompts.document(title, text)])
        kept = rows.export(0)
        self._cache[n] = kept
        self._bytes += _size(kept)
        while self._bytes > self.cache_bytes and len(self._cache) > 1:
            self._bytes -= _size(self._cache.popitem(last=False)[1])
        return kept


def _size(key_values: KeyValues) -> int:
    return sum(_bytes(k) + _bytes(v) for k, v in key_values)


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()
