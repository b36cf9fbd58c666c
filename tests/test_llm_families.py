"""Every causal language model of transformers: packed, shared, cached and captioned texts are as each alone,
beyond the model's own window; or it is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llm_toys
import pytest
import torch
import toys
from torch import Tensor

from mmgem.checkpoints.model_folder import load_model, save_model
from mmgem.config import EncoderConfig, LLMConfig, ModelConfig
from mmgem.errors import CheckpointError, ConfigError
from mmgem.inference.captioning import generate_captions
from mmgem.models import families
from mmgem.models.attention_masks import AttentionSpan, attention_spans
from mmgem.models.families import REFUSED, WORKS
from mmgem.models.kv_cache import BatchedKVCache
from mmgem.models.llm import LLM
from mmgem.models.network import MMGEMNetwork
from mmgem.models.packing import Segment
from mmgem.models.packing_check import check_packing

CPU = torch.device("cpu")
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def widened(llm: LLM) -> LLM:
    """The library starts all weights tiny; wider ones make leaks and windows plain to see."""
    with torch.no_grad():
        for p in llm.parameters():
            if p.ndim >= 2:
                p.normal_(0, 0.3)
    return llm


def made(model_type: str) -> MMGEMNetwork:
    torch.manual_seed(0)
    config = ModelConfig(
        encoder=EncoderConfig("none", config={"size": 32}), llm=LLMConfig(llm_toys.toy(model_type)), dim=8
    )
    network = MMGEMNetwork(config).eval()
    widened(network.llm)
    return network


def alone(llm: LLM, ids: Tensor, prefix: Tensor | None = None) -> Tensor:
    """Hidden states of one text as transformers makes them, with masks of its own."""
    given: dict[str, Tensor] = {"input_ids": ids[None]}
    if prefix is not None:
        given = {"inputs_embeds": torch.cat([prefix, llm.embed(ids)])[None]}
    states: Tensor = llm.body(use_cache=False, **given).last_hidden_state[0]
    return states


@pytest.mark.parametrize("model_type", [t for t in WORKS if t in llm_toys.known()])
def test_works(model_type: str) -> None:
    network = made(model_type)
    llm = network.llm
    for parameter in llm.parameters():
        parameter.requires_grad_(True)
    generator = torch.Generator().manual_seed(1)
    a, b, c, d = (torch.randint(1, llm_toys.VOCABULARY, (n,), generator=generator) for n in (12, 9, 4, 6))
    prefix = torch.randn(7, llm.width, generator=generator)
    with torch.no_grad():
        states = {name: alone(llm, ids) for name, ids in (("a", a), ("b", b))}
        states |= {"ac": alone(llm, torch.cat([a, c])), "ad": alone(llm, torch.cat([a, d]))}
        states |= {"prefix b": alone(llm, b, prefix)}
        torch.testing.assert_close(llm.logits(states["a"]), llm.lm(input_ids=a[None]).logits[0], **CLOSE)

    segments = [Segment(a), Segment(b), Segment(c, parent=0), Segment(b, prefix), Segment(d, parent=0)]
    output = network.forward_packed(segments, row_length=40)
    expected = [states["a"], states["b"], states["ac"][12:], states["prefix b"][7:], states["ad"][12:]]
    torch.testing.assert_close(output.hidden_states[output.token_indices], torch.cat(expected), **CLOSE)
    torch.testing.assert_close(output.prediction_states, states["prefix b"][6:], **CLOSE)

    embeddings = network.encode_text([a, b, d])
    embeddings.sum().backward()
    gradient = llm.lm.get_input_embeddings().weight.grad
    assert gradient is not None
    assert torch.isfinite(gradient).all()
    # Two layers of windows reach no further back than this.
    assert gradient[torch.cat([ids[-4:] for ids in (a, b, d)])].abs().sum(1).all()

    with torch.no_grad():
        grown_cache(llm, a, b, c, states)
        captions(network, prefix)
        looks_ahead(llm, a)


def grown_cache(llm: LLM, a: Tensor, b: Tensor, c: Tensor, states: dict[str, Tensor]) -> None:
    """Appended in parts of unlike lengths, selected, exported and loaded: as read at once."""
    cache = BatchedKVCache.empty(llm, 2, CPU)
    cache.append([a[:7].tolist(), b[:2].tolist()])
    cache.append([[], b[2:8].tolist()])
    cache = cache.select([0, 1])
    new = cache.append([a[7:].tolist(), b[8:].tolist()])
    torch.testing.assert_close(new[0], states["a"][7:], **CLOSE)
    torch.testing.assert_close(cache.last, torch.stack([states["a"][-1], states["b"][-1]]), **CLOSE)
    exported = [cache.export(1, torch.float32), cache.export(0, torch.float32)]
    again = BatchedKVCache.load(llm, exported, CPU)
    again.append([[3], c.tolist()])
    torch.testing.assert_close(again.last[1], states["ac"][-1], **CLOSE)


def captions(network: MMGEMNetwork, prefix: Tensor) -> None:
    """Greedy decoding on the cache, well beyond the window, finds what full passes of transformers find."""
    llm, length = network.llm, 9
    ids: list[int] = []
    total = 0.0
    start = torch.cat([prefix, network.cap_token[None]])
    for _ in range(length):
        states = alone(llm, torch.tensor(ids, dtype=torch.long), start)
        log_probs = llm.logits(states[-1]).log_softmax(-1)
        ids.append(int(log_probs.argmax()))
        total += float(log_probs.max())
    (caption,) = generate_captions(
        network, prefix[None], end=-1, beams=1, max_tokens=length, no_repeat_ngram_size=0
    )
    assert caption.ids == ids
    assert caption.log_prob == pytest.approx(total, rel=1e-3, abs=1e-3)


def looks_ahead(llm: LLM, ids: Tensor) -> None:
    """Where attention is not causal the first position sees the fourth."""
    inputs, count = llm.embed(ids), len(ids)
    everything = torch.ones(1, count, count, dtype=torch.bool)
    changed = inputs.clone()
    changed[3, 0] += 1
    states = [llm(x[None], torch.arange(count)[None], everything)[0, 0] for x in (inputs, changed)]
    assert (states[0] - states[1]).abs().max() > 1e-5


@pytest.mark.parametrize("model_type", REFUSED)
def test_refused(model_type: str) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.llm\.config: {model_type} \w+ [^\n]*$"):
        LLM({"model_type": model_type})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (llm_toys.toy("falcon") | {"alibi": True}, r"falcon biases attention by places"),
        (
            llm_toys.toy("granitemoehybrid") | {"layer_types": ["full_attention", "linear_attention"]},
            r"granitemoehybrid has layers of linear_attention: it carries a state",
        ),
        (llm_toys.toy("opt") | {"word_embed_proj_dim": 8}, r"opt has token vectors of another width"),
        (llm_toys.toy("llama") | {"num_attention_heads": 3}, r"[^\n]+"),
        (llm_toys.toy("llama") | {"hidden_size": "wide"}, r"[^\n]+"),
        ({"model_type": "t5"}, r"t5 is the decoder of an encoder-decoder"),
        ({"model_type": "clip"}, r"clip holds more than a language model"),
        ({"model_type": "vit"}, r"no vit: [^\n]+"),
        ({"model_type": "llava"}, r"llava holds more than a language model"),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_configs_that_cannot_work_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.llm\.config: {message}") as error:
        LLM(config)
    assert "\n" not in str(error.value)


def test_the_table_is_whole() -> None:
    """Every type that this transformers has and the table was made with."""
    import transformers

    known = llm_toys.known()
    if transformers.__version__.startswith("5.23."):
        assert known == WORKS.keys() | REFUSED.keys()
    assert not WORKS.keys() & REFUSED.keys()
    assert {"llama", "mistral", "gemma3_text", "gpt2"} <= known & WORKS.keys()


def test_the_docs_show_the_table() -> None:
    assert families.tables() in (Path(__file__).parents[1] / "docs" / "models.md").read_text()


@pytest.fixture
def no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no type were in the table: only the trial remains."""
    for module in ("mmgem.models.families", "mmgem.models.packing_check"):
        monkeypatch.setattr(f"{module}.WORKS", {})
    monkeypatch.setattr(families, "REFUSED", {})
    monkeypatch.setattr(families, "_ATTENTION_LAYERS", {*families._ATTENTION_LAYERS, "linear_attention"})


LEAKING = {
    "bloom": "cannot be called on packed rows: ValueError: [^\n]+",
    "jamba": "reads packed texts otherwise than each alone",
    "mpt": "reads texts in parts otherwise than at once|reads packed texts otherwise than each alone",
    "olmo_hybrid": "reads packed texts otherwise than each alone",
    "recurrent_gemma": "reads packed texts otherwise than each alone",
    "roberta": "reads packed texts otherwise than each alone",
    "rwkv": "reads packed texts otherwise than each alone",
    "modernbert-decoder": "computes logits otherwise than by its output head",
}


@pytest.mark.usefixtures("no_table")
@pytest.mark.parametrize("model_type", LEAKING)
def test_the_trial_finds_what_leaks(model_type: str) -> None:
    torch.manual_seed(0)
    llm = widened(LLM(llm_toys.toy(model_type)))
    with pytest.raises(ConfigError, match=rf"^model\.llm\.config: {model_type} ({LEAKING[model_type]})$"):
        check_packing(llm)


@pytest.mark.usefixtures("no_table")
def test_models_that_are_not_in_the_table_are_tried_when_loaded(tmp_path: Path) -> None:
    network = made("gemma2")
    save_model(tmp_path / "good", network, toys.tokenizer(), "")
    load_model(tmp_path / "good")
    network = made("rwkv")
    save_model(tmp_path / "bad", network, toys.tokenizer(), "")
    with pytest.raises(CheckpointError, match=r"bad: model\.llm\.config: rwkv reads packed"):
        load_model(tmp_path / "bad")


def test_the_trial_leaves_the_model_as_it_was() -> None:
    llm = LLM(llm_toys.toy("gemma3_text")).train()
    llm.lm.get_output_embeddings().eval()
    before = {name: module.training for name, module in llm.named_modules()}
    state = torch.random.get_rng_state()
    check_packing(llm)
    assert {name: module.training for name, module in llm.named_modules()} == before
    assert llm.lm.config.sliding_window == llm_toys.WINDOW
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None for p in llm.parameters())


def test_spans() -> None:
    config = LLM(llm_toys.toy("gemma2")).lm.config
    assert attention_spans(config) == {
        "full_attention": AttentionSpan(),
        "sliding_attention": AttentionSpan(sliding=llm_toys.WINDOW),
    }
    places = torch.arange(6)[None]
    sliding = AttentionSpan(sliding=2).within(places, places)[0]
    assert sliding.int().tolist()[2] == [0, 1, 1, 1, 0, 0]
    chunked = AttentionSpan(chunk=2).within(places, places)[0]
    assert chunked.int().tolist()[2] == [0, 0, 1, 1, 0, 0]
    assert not AttentionSpan(sliding=6).may_matter(6)
    assert AttentionSpan(sliding=6).may_matter(7)
