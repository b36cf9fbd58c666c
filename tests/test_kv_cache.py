"""A KV cache of many texts, and shared prefixes: states are those of each text alone."""

from __future__ import annotations

import pytest
import torch
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgem.models.kv_cache import BatchedKVCache
from mmgem.models.network import MMGEMNetwork
from mmgem.models.packing import Segment, pack_shared_prefix

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2", "mistral", "windowed gemma3"])
def network(request: pytest.FixtureRequest) -> MMGEMNetwork:
    return toys.network(request.param, "none")


def alone(network: MMGEMNetwork, tokens: list[int]) -> torch.Tensor:
    """States of one text in one pass."""
    ids = torch.tensor([tokens])
    with torch.inference_mode():
        positions = torch.arange(len(tokens))[None]
        causal = torch.ones(1, len(tokens), len(tokens), dtype=torch.bool).tril()
        return network.llm(network.llm.embed(ids), positions, causal)[0]


def test_rows_grow_as_if_alone(network: MMGEMNetwork) -> None:
    runs = [[[3, 4, 5], [6], []], [[7], [], [8, 9, 10, 11]], [[2, 3], [4, 5], [6]]]
    with torch.inference_mode():
        rows = BatchedKVCache.empty(network.llm, 3, CPU)
        for step in range(3):
            states = rows.append([runs[r][step] for r in range(3)])
            for r in range(3):
                so_far = [t for run in runs[r][: step + 1] for t in run]
                want = alone(network, so_far)
                torch.testing.assert_close(rows.last[r], want[-1], atol=1e-5, rtol=1e-5)
                new = len(runs[r][step])
                torch.testing.assert_close(states[r, :new], want[len(so_far) - new :], atol=1e-5, rtol=1e-5)


def test_selected_rows_go_on_and_leave_the_others(network: MMGEMNetwork) -> None:
    with torch.inference_mode():
        rows = BatchedKVCache.empty(network.llm, 2, CPU)
        rows.append([[3, 4, 5, 6], [7]])
        more = rows.select([1, 1, 0])
        more.append([[8], [9, 10], [11]])
        rows.append([[12], []])
    for got, tokens in zip(more.last, ([7, 8], [7, 9, 10], [3, 4, 5, 6, 11]), strict=True):
        torch.testing.assert_close(got, alone(network, tokens)[-1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rows.last[0], alone(network, [3, 4, 5, 6, 12])[-1], atol=1e-5, rtol=1e-5)
    # Columns that only dropped rows used are gone.
    assert rows.select([1]).valid.shape[1] == 1


def test_exported_rows_are_taken_up_again(network: MMGEMNetwork) -> None:
    with torch.inference_mode():
        rows = BatchedKVCache.empty(network.llm, 2, CPU)
        rows.append([[3, 4, 5, 6], [7, 8]])
        again = BatchedKVCache.load(
            network.llm, [rows.export(1, torch.float32), rows.export(0, torch.float32)], CPU
        )
        again.append([[9], [10, 11]])
    for got, tokens in zip(again.last, ([7, 8, 9], [3, 4, 5, 6, 10, 11]), strict=True):
        torch.testing.assert_close(got, alone(network, tokens)[-1], atol=1e-5, rtol=1e-5)


def test_exported_rows_are_taken_up_in_bfloat16() -> None:
    network = toys.network("llama").eval().to_inference_dtype("bfloat16")
    rows = BatchedKVCache.empty(network.llm, 1, torch.device("cpu"))
    rows.append([[5, 6, 7]])
    exported = rows.export(0)
    want = rows.append([[8, 9]])
    got = BatchedKVCache.load(network.llm, [exported], torch.device("cpu")).append([[8, 9]])
    torch.testing.assert_close(got, want, atol=1e-2, rtol=1e-2)


def test_a_shared_prefix_is_read_as_each_text_alone(network: MMGEMNetwork) -> None:
    texts = [torch.tensor(t, dtype=torch.long) for t in ([3, 4, 5], [6, 7], [], [8, 9], [10], [11, 12, 13])]
    parents = torch.tensor([-1, -1, 0, 0, 1, 0])
    embed = torch.tensor([False, True, True, False, False, True])
    with torch.inference_mode():
        segments = [
            Segment(text, pool=bool(embed[i]), parent=int(parents[i])) for i, text in enumerate(texts)
        ]
        output = network.forward_packed(segments, row_length=16)
    states, packing = output.hidden_states, output.packing
    for i, text in enumerate(texts):
        before = texts[parents[i]].tolist() if parents[i] >= 0 else []
        whole = torch.tensor([*before, *text.tolist()], dtype=torch.long)
        inputs = network.llm.embed(whole)
        if parents[i] >= 0 and embed[parents[i]]:  # what is continued may end in [EMB] itself
            inputs = torch.cat([inputs[: len(before)], network.emb_token[None], inputs[len(before) :]])
        if embed[i]:
            inputs = torch.cat([inputs, network.emb_token[None]])
        length = len(inputs)
        with torch.inference_mode():
            causal = torch.ones(1, length, length, dtype=torch.bool).tril()
            want = network.llm(inputs[None], torch.arange(length)[None], causal)[0]
        own = len(text) + int(embed[i])
        at = packing.flat(torch.arange(own), torch.full((own,), i))
        torch.testing.assert_close(states[at], want[length - own :], atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.lists(st.integers(0, 9), max_size=5)), min_size=1, max_size=8)
)
def test_shared_prefixes_stay_together(groups: list[tuple[int, list[int]]]) -> None:
    lengths = [trunk for trunk, _ in groups]
    parents = [-1] * len(groups)
    for trunk, (_, branches) in enumerate(groups):
        lengths += branches
        parents += [trunk] * len(branches)
    packing = pack_shared_prefix(lengths, torch.tensor(parents), 32)
    seen = torch.zeros_like(packing.segments)
    for i, (length, parent) in enumerate(zip(lengths, parents, strict=True)):
        row, start = int(packing.row[i]), int(packing.start[i])
        seen[row, start : start + length] += 1
        assert packing.segments[row, start : start + length].tolist() == [i] * length
        first = 0 if parent < 0 else lengths[parent]
        assert packing.positions[row, start : start + length].tolist() == list(range(first, first + length))
        assert parent < 0 or row == int(packing.row[parent])
    assert int(seen.max()) <= 1 and int(seen.sum()) == sum(lengths)
