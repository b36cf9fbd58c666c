"""Batches of a corpus: what names which passage, and what is asked of it; a pure function of (seed, step).

In an epoch every sentence (memorising) and every query (retrieving) is followed once by the title and a name
of its passage (:mod:`mmgem.self_retrieval.identifiers`), and every passage is read once, with its own
questions to ask and answer and those of other passages to reject. Passages of a title come in twos: one is a
hard negative of the other.
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
from mmgem.self_retrieval.identifiers import answering_sentence, drop_words, identifier_texts
from mmgem.self_retrieval.passages import Passage, Query
from mmgem.self_retrieval.prompts import Prompts

_MAX_QUESTIONS = 4  # most own questions of a passage in one reading


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


class _MaskedSequence:
    """A token sequence and which of its tokens are to be predicted."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.masks: dict[str, list[bool]] = defaultdict(list)

    def add(self, ids: Sequence[int], target: str | None = None) -> _MaskedSequence:
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
        passage_number = {passage.id: n for n, passage in enumerate(passages)}
        self.titles = prompts.pieces([p.title for p in passages])
        self.texts = prompts.pieces([p.text for p in passages])
        for passage, ids in zip(passages, self.texts, strict=True):
            if len(ids) > config.max_passage_tokens:
                raise DataError(
                    f"passage {passage.id!r} has {len(ids)} tokens, over self_retrieval.max_passage_tokens = "
                    f"{config.max_passage_tokens}: cut it, or raise the limit"
                )
        questions = [(q, passage_number[i]) for q in queries for i in q.positives]
        self._pair(passages, questions)
        if not self.pairs:
            raise DataError("self_retrieval: nothing to learn, with memorise = false and no queries")
        question_ids = prompts.pieces([q.query for q, _ in questions])
        answer_ids = prompts.pieces([q.answers[0] if q.answers else "" for q, _ in questions])
        self.questions_by_passage: list[list[tuple[list[int], list[int] | None]]] = [[] for _ in passages]
        for (query, n), ids, answer in zip(questions, question_ids, answer_ids, strict=True):
            self.questions_by_passage[n].append((ids, [*answer, prompts.end] if query.answers else None))
        self.passages_by_title: dict[str, list[int]] = defaultdict(list)
        for n, passage in enumerate(passages):
            self.passages_by_title[passage.title].append(n)
        self.same_title = [
            [m for m in self.passages_by_title[p.title] if m != n] for n, p in enumerate(passages)
        ]
        self.per_epoch = -(-len(self.pairs) // config.batch_size)

    def _pair(self, passages: Sequence[Passage], questions: list[tuple[Query, int]]) -> None:
        """Say which text is followed by which name of which passage: the sentences of ``passages``, the first
        ``self.sentences`` pairs, and the ``questions``."""
        by_sentence = self.config.identifiers == "sentences"
        texts = [identifier_texts(p.text, self.config.identifiers) for p in passages]
        self.names = [self.prompts.ended(of) for of in texts]
        self.pairs: list[tuple[str, int]] = []
        self.named: list[int] = []
        if self.config.memorise:
            for n, passage in enumerate(passages):
                sentences = texts[n] if by_sentence else passage_sentences(passage.text)
                self.pairs += [(sentence, n) for sentence in sentences]
                self.named += range(len(sentences)) if by_sentence else [0] * len(sentences)
        self.sentences = len(self.pairs)
        self.pairs += [(q.query, n) for q, n in questions]
        self.named += [
            answering_sentence(texts[n], q.query, q.answers) if by_sentence else 0 for q, n in questions
        ]

    @property
    def fingerprint(self) -> str:
        """Tells whether two runs learn from the same passages, queries and answers."""
        content = json.dumps([self.titles, self.names, self.pairs, self.named, self.questions_by_passage])
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    @property
    def max_sequence_length(self) -> int:
        """Most tokens that are read in one sequence: a passage, with a question and an answer behind it."""
        prompts = self.prompts
        documents = (prompts.document(a, b) for a, b in zip(self.titles, self.texts, strict=True))
        continuations = (
            [*prompts.asking(ids), *(answer or []), *prompts.rejection]
            for questions in self.questions_by_passage
            for ids, answer in questions
        )
        return max(map(len, documents)) + max(map(len, continuations), default=0)

    def __getitem__(self, step: int) -> SelfRetrievalBatch:
        epoch, position = divmod(step, self.per_epoch)
        rng = np.random.default_rng((self.seed, epoch, 5))
        pairs = self._shard(np.array_split(rng.permutation(len(self.pairs)), self.per_epoch)[position])
        passages = self._shard(np.array_split(self._passage_order(rng), self.per_epoch)[position])
        return self._collate(self._retrieval_sequences(pairs, epoch), passages, epoch)

    def _shard(self, batch: np.ndarray) -> list[int]:
        return batch[shard_slice(len(batch), self.rank, self.world_size)].tolist()

    def _passage_order(self, rng: np.random.Generator) -> np.ndarray:
        """All passages, shuffled in twos of one title."""
        groups = [
            indices[i : i + 2]
            for indices in (
                rng.permutation(same_title).tolist() for same_title in self.passages_by_title.values()
            )
            for i in range(0, len(indices), 2)
        ]
        return np.array([n for i in rng.permutation(len(groups)) for n in groups[i]])

    def _retrieval_sequences(self, pairs: list[int], epoch: int) -> list[_MaskedSequence]:
        prompts, sequences = self.prompts, []
        marker = prompts.then_title if self.config.titles else prompts.then_passage
        prefixes = prompts.retrieving([self._shown(i, epoch) for i in pairs], marker)
        for i, prefix in zip(pairs, prefixes, strict=True):
            n = self.pairs[i][1]
            sequence = _MaskedSequence().add(prefix)
            if self.config.titles:
                sequence.add([*self.titles[n], prompts.end], "named").add(prompts.then_passage)
            name = self.names[n][self.named[i]]
            sequences.append(sequence.add(name[: self.config.prefix_tokens], "named"))
        return sequences

    def _shown(self, pair: int, epoch: int) -> str:
        """What a name follows: the query, or the sentence, without some of its words if it names itself."""
        text, _ = self.pairs[pair]
        if pair >= self.sentences or self.config.identifiers == "prefix":
            return text
        return drop_words(text, np.random.default_rng((self.seed, epoch, pair, 7)))

    def _collate(
        self, retrieval: list[_MaskedSequence], passages: list[int], epoch: int
    ) -> SelfRetrievalBatch:
        prompts = self.prompts
        reading = [_MaskedSequence().add(prompts.document(self.titles[n], self.texts[n])) for n in passages]
        reading += [_MaskedSequence() for _ in passages]
        parents = [-1] * len(passages) + list(range(len(passages)))
        queries, owners = [], []
        for position, n in enumerate(passages):
            rng = np.random.default_rng((self.seed, epoch, n, 6))  # whatever else is read beside it
            questions = self.questions_by_passage[n]
            questions = [questions[i] for i in rng.permutation(len(questions))[:_MAX_QUESTIONS]]
            continuations = []
            for ids, answer in questions:
                continuation = (
                    _MaskedSequence().add(prompts.then_question).add(ids, "asked").add(prompts.answer)
                )
                continuations.append(continuation.add(answer, "answered") if answer else continuation)
                queries.append(_MaskedSequence().add(ids))
                owners.append(position)
            continuations += [
                _MaskedSequence().add(prompts.asking(ids)).add(prompts.rejection, "answered")
                for ids in self._negative_questions(n, rng)
            ]
            reading += continuations
            parents += [position] * len(continuations)
        pooled = [len(passages) <= i < 2 * len(passages) for i in range(len(reading))] + [True] * len(queries)
        parents += [-1] * len(queries)
        reading += queries

        def mask(sequences: list[_MaskedSequence], name: str) -> Tensor:
            return torch.tensor(
                [bit for sequence in sequences for bit in sequence.masks[name]], dtype=torch.bool
            )

        def tensors(sequences: list[_MaskedSequence]) -> list[Tensor]:
            return [torch.tensor(sequence.ids, dtype=torch.long) for sequence in sequences]

        return SelfRetrievalBatch(
            names=tensors(retrieval),
            named=mask(retrieval, "named"),
            reads=tensors(reading),
            parents=torch.tensor(parents),
            embed=torch.tensor(pooled),
            asked=mask(reading, "asked"),
            answered=mask(reading, "answered"),
            query_owner=torch.tensor(owners, dtype=torch.long),
        )

    def _negative_questions(self, n: int, rng: np.random.Generator) -> list[list[int]]:
        """Questions that passage ``n`` does not answer, as far as anybody says."""
        questions = self.questions_by_passage
        positives = {tuple(ids) for ids, _ in questions[n]}
        near = [ids for other in self.same_title[n] for ids, _ in questions[other]]
        count = self.config.hard_negatives
        negatives = [near[i] for i in rng.permutation(len(near))[: (count + 1) // 2]]
        for other in rng.permutation(len(questions))[: 4 * count].tolist():
            if len(negatives) < count and other != n and questions[other]:
                negatives.append(questions[other][int(rng.integers(len(questions[other])))][0])
        return [ids for ids in negatives if tuple(ids) not in positives]
