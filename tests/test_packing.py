"""Packing: nothing overlaps, nothing is lost, and a packed pass equals every sequence on its own."""

from __future__ import annotations

import pytest
import torch
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mmgem.models.llm import LLM, export_config, truncate
from mmgem.models.network import MMGEMNetwork
from mmgem.models.packing import Segment, pack

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40)


@settings(deadline=None, max_examples=60)
@given(LENGTHS, st.integers(1, 100))
def test_pack_keeps_everything_apart(lengths: list[int], row_length: int) -> None:
    packing = pack(lengths, row_length)
    rows, width = packing.segments.shape
    assert width <= max(row_length, *lengths)
    taken = torch.zeros(rows, width, dtype=torch.long)
    for i, n in enumerate(lengths):
        row, start = int(packing.row[i]), int(packing.start[i])
        taken[row, start : start + n] += 1
        assert packing.segments[row, start : start + n].tolist() == [i] * n
        assert packing.positions[row, start : start + n].tolist() == list(range(n))
    assert taken.max() == 1
    assert int(taken.sum()) == sum(lengths)
    assert (packing.segments[taken == 0] == -1).all()


@settings(deadline=None, max_examples=40)
@given(LENGTHS)
def test_pack_wastes_little(lengths: list[int]) -> None:
    # First fit leaves at most one row half empty; padding would use a row of the longest for each.
    segments = pack(lengths, 60).segments
    filled = (segments >= 0).sum(1)
    assert int((filled * 2 <= 60).sum()) <= 1


@settings(deadline=None, max_examples=40)
@given(LENGTHS, st.data())
def test_masks_never_cross_sequences(lengths: list[int], data: st.DataObject) -> None:
    packing = pack(lengths, 64)
    chosen = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    allowed = packing.allowed(torch.tensor(chosen))
    segments, positions = packing.segments, packing.positions
    same = segments[:, :, None] == segments[:, None, :]
    assert not (allowed & ~same).any()
    for i, causal in enumerate(chosen):
        row, start, n = int(packing.row[i]), int(packing.start[i]), lengths[i]
        block = allowed[row, start : start + n, start : start + n]
        assert torch.equal(
            block, torch.ones(n, n, dtype=torch.bool).tril() if causal else torch.ones_like(block)
        )
    assert torch.equal(packing.allowed(True), packing.allowed(torch.ones(len(lengths), dtype=torch.bool)))
    assert torch.equal(packing.allowed(False), same)
    assert positions.max() < 60


@settings(deadline=None, max_examples=40)
@given(LENGTHS, st.data())
def test_spans_point_at_their_sequence(lengths: list[int], data: st.DataObject) -> None:
    packing = pack(lengths, 64)
    some = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, unique=True))
    skip = [data.draw(st.integers(0, lengths[i] - 1)) for i in some]
    counts = torch.tensor([lengths[i] - s for i, s in zip(some, skip, strict=True)])
    at = packing.span(torch.tensor(skip), counts, torch.tensor(some))
    expected = [(i, p) for i, s in zip(some, skip, strict=True) for p in range(s, lengths[i])]
    found = zip(
        packing.segments.flatten()[at].tolist(), packing.positions.flatten()[at].tolist(), strict=True
    )
    assert list(found) == expected


def alone(network: MMGEMNetwork, inputs: Tensor, causal: bool) -> Tensor:
    """Hidden states ``(n, H)`` of one sequence ``(n, H)`` by itself, through the library's own model."""
    n = len(inputs)
    mask = torch.zeros(1, 1, n, n)
    if causal:
        mask = mask.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), torch.finfo(torch.float32).min)
    positions = torch.arange(n)[None]
    out = network.llm.lm.base_model(inputs_embeds=inputs[None], attention_mask=mask, position_ids=positions)
    return out.last_hidden_state[0]


@pytest.mark.parametrize("pool", ["emb", "mean"])
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
@pytest.mark.parametrize("llm", ["llama", "gpt2", "gemma3"])
def test_packed_equals_alone(llm: str, attention: str, pool: str) -> None:
    network = toys.network(llm, attention=attention, text_pool=pool, visual_tokens=2)
    texts = toys.sequences([5, 1, 12, 3, 8, 8, 2])
    captions = toys.sequences([4, 9, 1, 7], seed=1)
    prefixes = torch.randn(4, 2, 16)
    with torch.no_grad():
        text_parts, caption_parts = [], []
        for ids in texts:
            states = alone(
                network, torch.cat([network.llm.embed(ids), network.emb_token[None]]), attention == "causal"
            )
            text_parts.append(network.text_projection(states[-1] if pool == "emb" else states.mean(0)))
        for ids, prefix in zip(captions, prefixes, strict=True):
            inputs = torch.cat([prefix, network.cap_token[None], network.llm.embed(ids)])
            caption_parts.append(alone(network, inputs, causal=True)[2:])
        for row_length in (1, 16, 23, 128):
            embedded, states = toys.packed(network, texts, captions, prefixes, row_length)
            torch.testing.assert_close(embedded, torch.stack(text_parts), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(states, torch.cat(caption_parts), atol=1e-5, rtol=1e-5)


def test_texts_or_captions_only() -> None:
    network = toys.network()
    texts, captions, prefixes = toys.sequences([3, 6]), toys.sequences([4]), torch.randn(1, 1, 16)
    with torch.no_grad():
        embedded, states = toys.packed(network, texts, captions, prefixes)
        torch.testing.assert_close(toys.packed(network, texts=texts)[0], embedded)
        torch.testing.assert_close(network.encode_text(texts), embedded)
        assert toys.packed(network, texts=texts)[1].shape == (0, 16)
        torch.testing.assert_close(toys.packed(network, captions=captions, prefixes=prefixes)[1], states)
        assert toys.packed(network, captions=captions, prefixes=prefixes)[0].shape == (0, 8)
    with pytest.raises(ValueError, match="prefixes"):
        network.caption_segments(captions, prefixes[:0])


@pytest.mark.parametrize("pool", ["emb", "mean"])
def test_segments_of_every_kind_in_one_pass(pool: str) -> None:
    """With and without prefixes of any length, pooled, continued and not causal: as each alone."""
    network = toys.network("llama", "none", text_pool=pool)
    llm = network.llm
    a, b, c, d, empty = toys.sequences([6, 9, 4, 3, 0])
    long, short = torch.randn(5, 16), torch.randn(2, 16)
    segments = [
        Segment(a, prefix=long),
        Segment(b, pool=True, causal=False),
        Segment(empty, pool=True, parent=0),
        Segment(c, prefix=short, pool=True),
        Segment(d, pool=True, parent=1),
        Segment(c, prefix=short[:0], causal=True),
    ]
    with torch.no_grad():
        output = network.forward_packed(segments, row_length=20)
        a_in, b_in = torch.cat([long, llm.embed(a)]), torch.cat([llm.embed(b), network.emb_token[None]])
        c_in = torch.cat([short, llm.embed(c), network.emb_token[None]])
        a_alone = alone(network, torch.cat([a_in, network.emb_token[None]]), True)
        b_alone, c_alone = alone(network, b_in, False), alone(network, c_in, True)
        bare = alone(network, llm.embed(c), True)
    places = output.token_indices.split([6, 9, 0, 4, 3, 4])
    states = output.hidden_states
    torch.testing.assert_close(states[places[0]], a_alone[5:11], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(states[places[1]], b_alone[:9], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(states[places[3]], c_alone[2:6], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(states[places[5]], bare, atol=1e-5, rtol=1e-5)
    assert output.packing.positions.flatten()[places[4]].tolist() == [10, 11, 12]
    predicting = output.prediction_states.split([7, 5, 5])
    torch.testing.assert_close(predicting[0], a_alone[4:11], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(predicting[1], c_alone[1:6], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(predicting[2][1:], bare, atol=1e-5, rtol=1e-5)
    assert output.embeddings.shape == (4, 8)
    for row, whole in enumerate((b_alone, a_alone, c_alone)):
        pooled = whole[-1] if pool == "emb" else whole.mean(0)
        torch.testing.assert_close(
            output.embeddings[row], network.text_projection(pooled), atol=1e-5, rtol=1e-5
        )


def test_a_chain_of_segments_is_refused() -> None:
    a, b, c = toys.sequences([3, 2, 2])
    with pytest.raises(ValueError, match="segment 2 continues 1"):
        toys.network().forward_packed([Segment(a), Segment(b, parent=0), Segment(c, parent=1)])


def test_text_does_not_depend_on_its_neighbours() -> None:
    network = toys.network("qwen3")
    text = toys.sequences([6])[0]
    with torch.no_grad():
        one = network.encode_text([text])[0]
        for seed in range(3):
            others = toys.sequences([3, 11, 2], seed)
            torch.testing.assert_close(network.encode_text([*others, text])[3], one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("llm", ["llama", "gpt2", "gemma3"])
def test_truncated_model_equals_its_own_blocks(llm: str) -> None:
    """Kept blocks run in order, with and without a cache, and the final norm stays."""
    from transformers import DynamicCache

    name = "n_layer" if llm == "gpt2" else "num_hidden_layers"
    torch.manual_seed(0)
    toys.LLMS["deep"] = toys.LLMS[llm] | {name: 7}
    try:
        network = toys.network("deep")
    finally:
        del toys.LLMS["deep"]
    kept = [network.llm.blocks[i] for i in (0, 6)]
    truncate(network.llm.lm, [0, 6])
    assert list(network.llm.blocks) == kept
    inputs = torch.randn(1, 6, 16)
    with torch.no_grad():
        whole = network.llm(inputs, torch.arange(6)[None], torch.ones(1, 6, 6, dtype=torch.bool).tril())
        cache = DynamicCache()
        parts = [network.llm(inputs[:, i : i + 1], torch.tensor([[i]]), None, cache) for i in range(6)]
        torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)
    rebuilt = LLM(export_config(network.llm.lm.config))
    rebuilt.load_state_dict(network.llm.state_dict())
    assert len(rebuilt.blocks) == 2
