"""Batches of a corpus: what names which passage, and what is asked of it; a pure function of (seed, step).

In an epoch every sentence (memorising) and every query (retrieving) is followed once by the title and the
first tokens of its passage, and every passage is read once, with its own questions to ask and answer and
those of other passages to reject. Passages of a title come in twos: one is a hard negative of the other.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mmgem.data.sentences import passage_sentences
from mmgem.distributed.partition import shard_slice
from mmgem.errors import DataError
from mmgem.self_retrieval.config import SelfRetrievalConfig
from mmgem.self_retrieval.passages import Passage, Query
from mmgem.self_retrieval.prompts import Prompts

_QUESTIONS = 4  # most own questions of a passage in one reading


@dataclass
class SelfRetrievalBatch:
    """What a step reads of a corpus. Token sequences are 1-D int64 on the CPU; masks are bool, over the
    tokens of all sequences in turn.

    ``names``: question -> title, passage; ``named``: tokens to predict. ``reads``: P passages, P empty
    sequences that end in ``[EMB]``, the branches that ask, and the queries to embed; ``parents``, ``embed``:
    each one's :class:`Segment` (``parent``, ``pool``); ``asked`` and ``answered``: tokens to predict.
    ``query_owner``: ``(Q,)``, the passage of each query that is embedded.
    """

    names: list[Tensor]
    named: Tensor
    reads: list[Tensor]
    parents: Tensor
    embed: Tensor
    asked: Tensor
    answered: Tensor
    query_owner: Tensor


class _Spans:
    """A token sequence and which of its tokens are to be predicted."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.masks: dict[str, list[bool]] = defaultdict(list)

    def add(self, ids: Sequence[int], target: str | None = None) -> _Spans:
        for name in ("named", "asked", "answered"):
            self.masks[name] += [name == target] * len(ids)
        self.ids += ids
        return self


class SelfRetrievalBatches:
    """Indexable: ``batches[step]`` is the :class:`SelfRetrievalBatch` of that step, the same on every run."""

    def __init__(
        self,
        passages: Sequence[Passage],
        queries: Sequence[Query],
        prompts: Prompts,
        config: SelfRetrievalConfig,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        """``rank`` of ``world_size`` processes; each has its own part of every batch."""
        self.rank, self.world_size = rank, world_size
        self.config, self.prompts, self.seed = config, prompts, seed
        number = {passage.id: n for n, passage in enumerate(passages)}
        self.titles = prompts.pieces([p.title for p in passages])
        self.texts = prompts.pieces([p.text for p in passages])
        for passage, ids in zip(passages, self.texts, strict=True):
            if len(ids) > config.max_passage_tokens:
                raise DataError(
                    f"passage {passage.id!r} has {len(ids)} tokens, over self_retrieval.max_passage_tokens = "
                    f"{config.max_passage_tokens}: cut it, or raise the limit"
                )
        self.pairs: list[tuple[str, int]] = []
        if config.memorise:
            self.pairs += [(s, n) for n, p in enumerate(passages) for s in passage_sentences(p.text)]
        questions = [(q, number[i]) for q in queries for i in q.positives]
        self.pairs += [(q.query, n) for q, n in questions]
        if not self.pairs:
            raise DataError("self_retrieval: nothing to learn, with memorise = false and no queries")
        pieces = prompts.pieces([q.query for q, _ in questions])
        answers = prompts.pieces([q.answers[0] if q.answers else "" for q, _ in questions])
        self.questions_of: list[list[tuple[list[int], list[int] | None]]] = [[] for _ in passages]
        for (query, n), ids, answer in zip(questions, pieces, answers, strict=True):
            self.questions_of[n].append((ids, [*answer, prompts.end] if query.answers else None))
        self.of_title: dict[str, list[int]] = defaultdict(list)
        for n, passage in enumerate(passages):
            self.of_title[passage.title].append(n)
        self.siblings = [[m for m in self.of_title[p.title] if m != n] for n, p in enumerate(passages)]
        self.per_epoch = -(-len(self.pairs) // config.batch_size)

    @property
    def fingerprint(self) -> str:
        """Tells whether two runs learn from the same passages, queries and answers."""
        facts = json.dumps([self.titles, self.texts, self.pairs, self.questions_of])
        return hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()

    @property
    def longest(self) -> int:
        """Most tokens that are read in one sequence: a passage, with a question and an answer behind it."""
        prompts = self.prompts
        documents = (prompts.document(a, b) for a, b in zip(self.titles, self.texts, strict=True))
        behind = (
            [*prompts.asking(ids), *(answer or []), *prompts.rejection]
            for asked in self.questions_of
            for ids, answer in asked
        )
        return max(map(len, documents)) + max(map(len, behind), default=0)

    def __getitem__(self, step: int) -> SelfRetrievalBatch:
        epoch, place = divmod(step, self.per_epoch)
        rng = np.random.default_rng((self.seed, epoch, 5))
        chosen = self._own(np.array_split(rng.permutation(len(self.pairs)), self.per_epoch)[place])
        read = self._own(np.array_split(self._order(rng), self.per_epoch)[place])
        return self._assemble(self._names([self.pairs[i] for i in chosen]), read, epoch)

    def _own(self, batch: np.ndarray) -> list[int]:
        return batch[shard_slice(len(batch), self.rank, self.world_size)].tolist()

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        """All passages, shuffled in twos of one title."""
        twos = [
            numbers[i : i + 2]
            for numbers in (rng.permutation(group).tolist() for group in self.of_title.values())
            for i in range(0, len(numbers), 2)
        ]
        return np.array([n for i in rng.permutation(len(twos)) for n in twos[i]])

    def _names(self, pairs: list[tuple[str, int]]) -> list[_Spans]:
        prompts, made = self.prompts, []
        marker = prompts.then_title if self.config.titles else prompts.then_passage
        prefixes = prompts.retrieving([text for text, _ in pairs], marker)
        for (_, n), prefix in zip(pairs, prefixes, strict=True):
            spans = _Spans().add(prefix)
            if self.config.titles:
                spans.add([*self.titles[n], prompts.end], "named").add(prompts.then_passage)
            whole = [*self.texts[n], prompts.end]
            made.append(spans.add(whole[: self.config.prefix_tokens], "named"))
        return made

    def _assemble(self, names: list[_Spans], read: list[int], epoch: int) -> SelfRetrievalBatch:
        prompts = self.prompts
        reads = [_Spans().add(prompts.document(self.titles[n], self.texts[n])) for n in read]
        reads += [_Spans() for _ in read]
        parents = [-1] * len(read) + list(range(len(read)))
        queries, owners = [], []
        for place, n in enumerate(read):
            rng = np.random.default_rng((self.seed, epoch, n, 6))  # whatever else is read beside it
            own = [self.questions_of[n][i] for i in rng.permutation(len(self.questions_of[n]))[:_QUESTIONS]]
            branches = []
            for ids, answer in own:
                branch = _Spans().add(prompts.then_question).add(ids, "asked").add(prompts.answer)
                branches.append(branch.add(answer, "answered") if answer else branch)
                queries.append(_Spans().add(ids))
                owners.append(place)
            branches += [
                _Spans().add(prompts.asking(ids)).add(prompts.rejection, "answered")
                for ids in self._foreign(n, rng)
            ]
            reads += branches
            parents += [place] * len(branches)
        embed = [len(read) <= i < 2 * len(read) for i in range(len(reads))] + [True] * len(queries)
        parents += [-1] * len(queries)
        reads += queries

        def mask(of: list[_Spans], name: str) -> Tensor:
            return torch.tensor([bit for spans in of for bit in spans.masks[name]], dtype=torch.bool)

        def tensors(of: list[_Spans]) -> list[Tensor]:
            return [torch.tensor(spans.ids, dtype=torch.long) for spans in of]

        return SelfRetrievalBatch(
            names=tensors(names),
            named=mask(names, "named"),
            reads=tensors(reads),
            parents=torch.tensor(parents),
            embed=torch.tensor(embed),
            asked=mask(reads, "asked"),
            answered=mask(reads, "answered"),
            query_owner=torch.tensor(owners, dtype=torch.long),
        )

    def _foreign(self, n: int, rng: np.random.Generator) -> list[list[int]]:
        """Questions that passage ``n`` does not answer, as far as anybody says."""
        own = {tuple(ids) for ids, _ in self.questions_of[n]}
        near = [ids for m in self.siblings[n] for ids, _ in self.questions_of[m]]
        count = self.config.hard_negatives
        picked = [near[i] for i in rng.permutation(len(near))[: (count + 1) // 2]]
        for m in rng.permutation(len(self.questions_of))[: 4 * count].tolist():
            if len(picked) < count and m != n and self.questions_of[m]:
                picked.append(self.questions_of[m][int(rng.integers(len(self.questions_of[m])))][0])
        return [ids for ids in picked if tuple(ids) not in own]
