"""Decoding along a trie: only its rows come out, with the probabilities that a full enumeration gives."""

from __future__ import annotations

import math

import pytest
import torch
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgem.models.kv_cache import BatchedKVCache
from mmgem.self_retrieval.constrained_decoding import constrained_beam_search, vocabulary_beam_search
from mmgem.self_retrieval.trie import Trie

CPU = torch.device("cpu")
NETWORK = toys.network("tied llama", "none")
END = 0
ROWS = st.lists(
    st.lists(st.integers(1, 6), min_size=1, max_size=12).map(lambda row: [*row, END]), min_size=1, max_size=25
)
PROMPTS = st.lists(st.lists(st.integers(1, 30), min_size=1, max_size=6), min_size=1, max_size=4)


def asked(prompts: list[list[int]]) -> BatchedKVCache:
    rows = BatchedKVCache.empty(NETWORK.llm, len(prompts), CPU)
    with torch.inference_mode():
        rows.append(prompts)
    return rows


def probability(prompt: list[int], row: list[int], rows: list[list[int]]) -> float:
    """Sum over the row's tokens of log softmax over what any row goes on with, each in a fresh pass."""
    total = 0.0
    for depth in range(len(row)):
        allowed = sorted({r[depth] for r in rows if r[:depth] == row[:depth]})
        if len(allowed) == 1:
            continue
        with torch.inference_mode():
            logits = NETWORK.llm.logits(asked([[*prompt, *row[:depth]]]).last)[0]
        total += float(logits[allowed].log_softmax(0)[allowed.index(row[depth])])
    return total


@settings(deadline=None, max_examples=25)
@given(ROWS, PROMPTS)
def test_a_wide_beam_is_the_full_enumeration(rows: list[list[int]], prompts: list[list[int]]) -> None:
    trie = Trie.build(rows)
    found = constrained_beam_search(asked(prompts), trie, [trie.root] * len(prompts), 30)
    distinct = [list(r) for r in {tuple(r) for r in rows}]
    for prompt, paths in zip(prompts, found, strict=True):
        got = {tuple(trie.row(p.node.lo).tolist()): p.log_prob for p in paths}
        assert len(paths) == len(got) == len(distinct)
        for row in distinct:
            assert got[tuple(row)] == pytest.approx(probability(prompt, row, distinct), abs=1e-4)
        assert [p.log_prob for p in paths] == sorted(got.values(), reverse=True)
        assert sum(map(math.exp, got.values())) == pytest.approx(1, abs=1e-4)


@settings(deadline=None, max_examples=25)
@given(ROWS, PROMPTS, st.integers(1, 4), st.booleans())
def test_what_comes_out_is_real_and_depends_on_its_own_question_alone(
    rows: list[list[int]], prompts: list[list[int]], width: int, one_token: bool
) -> None:
    trie = Trie.build(rows)
    together = constrained_beam_search(asked(prompts), trie, [trie.root] * len(prompts), width, one_token)
    for prompt, paths in zip(prompts, together, strict=True):
        assert 1 <= len(paths) <= width
        for path in paths:
            owners = trie.ids_of(path.node).tolist()
            assert owners == [i for i, row in enumerate(rows) if row == rows[owners[0]]]
        (single,) = constrained_beam_search(asked([prompt]), trie, [trie.root], width, one_token)
        assert [p.node[:2] for p in single] == [p.node[:2] for p in paths]
        for a, b in zip(single, paths, strict=True):
            assert a.log_prob == pytest.approx(b.log_prob, abs=1e-4)


def test_each_row_starts_from_its_own_node() -> None:
    trie = Trie.build([[1, 2, END], [1, 3, END], [4, 2, END], [4, 5, END]])
    nodes = [trie.child(trie.root, 4), trie.child(trie.root, 1)]
    found = constrained_beam_search(asked([[7], [8]]), trie, nodes, 5)
    assert [sorted(int(trie.ids_of(p.node)[0]) for p in paths) for paths in found] == [[2, 3], [0, 1]]


def test_one_token_returns_one_row_for_each_first_token() -> None:
    trie = Trie.build([[1, 2, END], [1, 3, END], [4, 2, END]])
    (paths,) = constrained_beam_search(asked([[7]]), trie, [trie.root], 5, first_token_only=True)
    firsts = [int(trie.row(p.node.lo)[0]) for p in paths]
    assert sorted(firsts) == [1, 4]


@settings(deadline=None, max_examples=15)
@given(ROWS, st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(2, 4))
def test_over_the_whole_vocabulary_it_is_the_beam_search_of_transformers(
    rows: list[list[int]], prompt: list[int], width: int
) -> None:
    trie = Trie.build(rows)
    (paths,) = vocabulary_beam_search(asked([prompt]), trie, [trie.root], width)

    def allowed(_: int, ids: torch.Tensor) -> list[int]:
        node = trie.find(ids[len(prompt) :].tolist())
        tokens = [] if node is None else trie.children(node)[0].tolist()
        return tokens or [END]

    made = NETWORK.llm.lm.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        prefix_allowed_tokens_fn=allowed,
        num_beams=width,
        num_return_sequences=width,
        length_penalty=1.0,
        early_stopping="never",
        do_sample=False,
        max_new_tokens=max(map(len, rows)) + 1,
        eos_token_id=END,
        pad_token_id=END,
        return_dict_in_generate=True,
        output_scores=True,
    )
    theirs = {}
    for ids, score in zip(made.sequences.tolist(), made.sequences_scores.tolist(), strict=True):
        row = ids[len(prompt) :]
        row = row[: row.index(END) + 1] if END in row else row
        if score > -1e6 and row in rows:  # fewer rows than beams: the others are not rows
            theirs[tuple(row)] = score
    ours = {tuple(trie.row(p.node.lo).tolist()): p.log_prob for p in paths}
    assert list(ours)[: len(theirs)] == list(theirs)
    for row, score in theirs.items():
        assert ours[row] == pytest.approx(score, abs=1e-4)
