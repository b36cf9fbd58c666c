"""The model as judge and reader: a passage and a question in, how well they fit and the answer out.

    likelihood   log P(question | passage), summed over its tokens: how well the passage explains it
    rejection    P("cannot extract answer" | passage, question): Self-Retrieval's assessment

A passage is read once and its keys and values are kept (float16), least recently used ones first to go; a
question costs only its own tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmgem.models.kv_cache import BatchedKVCache, KeyValues
from mmgem.models.llm import LLM
from mmgem.self_retrieval.corpus import Corpus
from mmgem.self_retrieval.prompts import Prompts


@dataclass(frozen=True)
class Judgement:
    """What the model thinks of passages ``(n,)`` for a question; float64."""

    likelihood: np.ndarray
    rejection: np.ndarray


class Reader:
    """Judges and answers from the passages of a corpus."""

    def __init__(
        self, llm: LLM, prompts: Prompts, corpus: Corpus, device: torch.device, kept_bytes: int = 1 << 30
    ):
        self.llm, self.prompts, self.corpus, self.device = llm, prompts, corpus, device
        self.kept_bytes = kept_bytes
        self._kept: OrderedDict[int, KeyValues] = OrderedDict()
        self._bytes = 0

    @torch.inference_mode()
    def judge(self, question: str, passages: Sequence[int], at_once: int = 32) -> Judgement:
        """Judge passages (their numbers in the corpus) for a question."""
        (ids,) = self.prompts.pieces([question])
        branch = [*self.prompts.asking(ids), *self.prompts.rejection]
        first = len(self.prompts.then_question)
        told = len(branch) - len(self.prompts.rejection)
        targets = torch.tensor(branch[1:], device=self.device)
        likelihood, rejection = [], []
        for at in range(0, len(passages), at_once):
            chunk = passages[at : at + at_once]
            states = self._rows(chunk).append([branch] * len(chunk))
            for part in states[:, :-1].split(8):  # the head's output is large
                scores = self.llm.logits(part).float().log_softmax(-1)
                scores = scores.gather(2, targets.expand(len(part), -1)[..., None])[..., 0].double()
                likelihood.append(scores[:, first - 1 : first - 1 + len(ids)].sum(1))
                rejection.append(scores[:, told - 1 :].sum(1).exp())
        empty = torch.zeros(0)
        return Judgement(
            torch.cat([*likelihood, empty]).cpu().numpy(), torch.cat([*rejection, empty]).cpu().numpy()
        )

    @torch.inference_mode()
    def answer(self, question: str, passage: int, most: int = 32) -> tuple[str | None, float]:
        """The likeliest answer, word by word, of at most ``most`` tokens, and the mean log-probability of its
        tokens; None where the model says that the passage holds none."""
        (ids,) = self.prompts.pieces([question])
        rows = self._rows([passage])
        rows.append([self.prompts.asking(ids)])
        said: list[int] = []
        total = 0.0
        while True:
            scores = self.llm.logits(rows.last).float().log_softmax(-1)[0]
            token = int(scores.argmax())
            total += float(scores[token])
            if token == self.prompts.end or len(said) == most:
                break
            said.append(token)
            rows.append([[token]])
        if [*said, self.prompts.end] == self.prompts.rejection:
            return None, total / (len(said) + 1)
        return self.prompts.text(said), total / (len(said) + 1)

    def _rows(self, passages: Sequence[int]) -> BatchedKVCache:
        return BatchedKVCache.load(self.llm, [self._document(n) for n in passages], self.device)

    def _document(self, n: int) -> KeyValues:
        if n in self._kept:
            self._kept.move_to_end(n)
            return self._kept[n]
        passage = self.corpus.passages[n]
        title, text = self.prompts.pieces([passage.title, passage.text])
        rows = BatchedKVCache.empty(self.llm, 1, self.device)
        rows.append([self.prompts.document(title, text)])
        kept = rows.export(0)
        self._kept[n] = kept
        self._bytes += _size(kept)
        while self._bytes > self.kept_bytes and len(self._kept) > 1:
            self._bytes -= _size(self._kept.popitem(last=False)[1])
        return kept


def _size(kept: KeyValues) -> int:
    return sum(_bytes(k) + _bytes(v) for k, v in kept)


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()
