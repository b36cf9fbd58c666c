"""What trains, how fast, and what is averaged and merged."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import toys

from mmgem.checkpoints.model_folder import build
from mmgem.config import OptimConfig
from mmgem.errors import ConfigError
from mmgem.models.network import MMGEMNetwork
from mmgem.train.optim import (
    ExponentialMovingAverage,
    build_optimizer,
    configure_trainable,
    lr_multiplier,
    merge_lora,
)


def step(network: MMGEMNetwork, config: OptimConfig, cached: bool = False, steps: int = 1) -> None:
    groups = configure_trainable(network, config, cached)
    adam = build_optimizer(network, groups, config)
    batch = toys.batch(network, images=4)
    pixels = torch.randn(4, 3, 32, 32)
    for _ in range(steps):
        adam.zero_grad()
        if not cached:
            batch.features = network.encoder.frozen_stem(pixels)
        losses = toys.losses(network, batch)
        (losses["contrastive_loss"] + losses["caption_loss"]).backward()
        adam.step()


def moved(network: MMGEMNetwork, before: dict[str, torch.Tensor]) -> set[str]:
    return {n for n, p in network.named_parameters() if not torch.equal(p, before[n])}


def snapshot(network: MMGEMNetwork) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in network.named_parameters()}


def test_groups() -> None:
    network = toys.network("qwen2", "efficientnet_lite0")
    config = OptimConfig(lr_encoder=1e-4, lr_embeddings=1e-5)
    groups = configure_trainable(network, config, cached=True)
    assert set(groups) == {"heads", "llm", "embeddings", "encoder"}
    assert groups["embeddings"] == ["llm.lm.model.embed_tokens.weight"]
    assert {"emb_token", "cap_token", "logit_scale", "visual_connector.weight"} <= set(groups["heads"])
    assert all(n.startswith(("encoder.net.blocks.", "encoder.net.head.")) for n in groups["encoder"])
    # Blocks up to the cut are behind the cache.
    assert {int(n.split(".")[3]) for n in groups["encoder"] if "blocks" in n} == set(range(11, 16))
    uncached = configure_trainable(network, config, cached=False)
    assert len(uncached["encoder"]) == len(list(network.encoder.parameters()))
    adam = build_optimizer(network, uncached, config)
    assert sum(len(g["params"]) for g in adam.param_groups) == len(list(network.parameters()))
    for group in adam.param_groups:
        assert all((p.ndim >= 2) == (group["weight_decay"] > 0) for p in group["params"])
        assert group["base"] in (config.lr_heads, config.lr_llm, config.lr_encoder, config.lr_embeddings)


def test_trainable_parameters_alone_move() -> None:
    """So embeddings stay what they were while captions are learned."""
    network = toys.network("llama", "efficientnet_lite0")
    before = snapshot(network)
    step(network, OptimConfig(lr_encoder=1e-4, trainable=["visual_connector.", "cap_token"]), steps=2)
    assert moved(network, before) == {"visual_connector.weight", "visual_connector.bias", "cap_token"}


@pytest.mark.parametrize(("start", "rates"), [("visual_conector", {}), ("llm.", {"lr_llm": 0.0})])
def test_trainable_has_to_be_something(start: str, rates: dict[str, float]) -> None:
    network = toys.network("llama", "efficientnet_lite0")
    config = OptimConfig(trainable=["cap_token", start], **rates)
    with pytest.raises(ConfigError, match=f"optim.trainable: .*'{start}'"):
        configure_trainable(network, config, cached=True)


@pytest.mark.parametrize(
    ("rates", "prefixes"),
    [
        ({"lr_llm": 0.0}, ("visual_", "text_", "emb_token", "cap_token", "logit")),
        ({"lr_heads": 0.0}, ("llm",)),
        ({"lr_heads": 0.0, "lr_llm": 0.0, "lr_encoder": 1e-3}, ("encoder",)),
        ({"lr_heads": 0.0, "lr_llm": 0.0, "lr_embeddings": 1e-3}, ("llm.lm.model.embed_tokens",)),
    ],
)
def test_frozen_groups_do_not_move(rates: dict[str, float], prefixes: tuple[str, ...]) -> None:
    network = toys.network("llama")
    before = snapshot(network)
    step(network, OptimConfig(weight_decay=0.5, **rates), steps=2)
    changed = moved(network, before)
    assert changed
    assert all(n.startswith(prefixes) for n in changed)
    if "embed" not in prefixes[0]:
        assert not any("embed_tokens" in n for n in changed)


def test_cached_encoder_stays_below_the_cut() -> None:
    network = toys.network("llama", "efficientnet_lite0")
    before = snapshot(network)
    step(network, OptimConfig(lr_heads=0.0, lr_llm=0.0, lr_encoder=1e-3), cached=True)
    changed = moved(network, before)
    assert any(n.startswith("encoder.net.blocks.15") for n in changed)
    assert all(n.startswith("encoder.") for n in changed)
    assert not any(n.startswith(tuple(f"encoder.net.blocks.{i}." for i in range(11))) for n in changed)


def test_learning_rate() -> None:
    config = OptimConfig(warmup_steps=10, final_lr_ratio=0.1)
    factors = [lr_multiplier(s, 100, config) for s in range(100)]
    assert factors[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert factors[10] == pytest.approx(1.0)
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert factors[55] == pytest.approx(0.55)
    assert lr_multiplier(100, 100, config) == pytest.approx(0.1)
    assert lr_multiplier(500, 100, config) == pytest.approx(0.1)
    assert lr_multiplier(3, 2, config) == pytest.approx(0.4)  # a run shorter than its warm-up
    assert lr_multiplier(0, 100, OptimConfig(warmup_steps=0)) == 1.0


def test_average_is_the_moving_average() -> None:
    network = toys.network()
    configure_trainable(network, OptimConfig(), cached=False)
    average = ExponentialMovingAverage(network, 0.9)
    assert set(average.values) == {n for n, p in network.named_parameters() if p.requires_grad}
    expected = network.visual_connector.weight.detach().clone()
    for n in range(30):
        with torch.no_grad():
            network.visual_connector.weight.add_(torch.randn_like(network.visual_connector.weight))
        decay = min(0.9, (n + 1) / (n + 10))
        expected = decay * expected + (1 - decay) * network.visual_connector.weight.detach()
        average.update(network, n)
    torch.testing.assert_close(average.values["visual_connector.weight"], expected)


def test_swapping_twice_changes_nothing() -> None:
    network = toys.network()
    configure_trainable(network, OptimConfig(), cached=False)
    average = ExponentialMovingAverage(network, 0.9)
    with torch.no_grad():
        network.visual_connector.weight.add_(1)
    current, averaged = (
        network.visual_connector.weight.detach().clone(),
        average.values["visual_connector.weight"].clone(),
    )
    average.swap_weights(network)
    assert torch.equal(network.visual_connector.weight, averaged)
    average.swap_weights(network)
    assert torch.equal(network.visual_connector.weight, current)
    assert torch.equal(average.values["visual_connector.weight"], averaged)


@pytest.mark.parametrize("llm", ["llama", "qwen2", "gpt2", "gemma3"])
def test_merged_lora_is_the_adapted_model(llm: str) -> None:
    network = toys.network(llm)
    base = snapshot(network)
    plain = copy.deepcopy(network)
    texts, captions, prefixes = toys.sequences([4, 7]), toys.sequences([5]), torch.randn(1, 1, 16)
    step(network, OptimConfig(lora_rank=2, lr_heads=0.0, lr_llm=1e-2), steps=3)
    trained = {n for n, p in network.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in n for n in trained)
    kept = dict(network.named_parameters())
    for name, value in base.items():
        owner, _, last = name.rpartition(".")
        assert torch.equal(kept.get(name, kept.get(f"{owner}.base_layer.{last}")), value)

    merged = build(network.config)
    merged.load_state_dict(merge_lora(network.state_dict(), network))
    with torch.no_grad():
        adapted = toys.packed(network.eval(), texts, captions, prefixes)
        for ours, theirs, before in zip(
            toys.packed(merged.eval(), texts, captions, prefixes),
            adapted,
            toys.packed(plain, texts, captions, prefixes),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
            assert not torch.allclose(ours, before, atol=1e-3)


def test_lora_leaves_the_new_parts_to_train() -> None:
    network = toys.network("llama")
    groups = configure_trainable(network, OptimConfig(lora_rank=2), cached=True)
    assert set(groups) == {"heads", "llm"}
    blocks = [n for n in groups["llm"] if n.endswith("lora_A.default.weight")]
    assert len(blocks) == 2 * 7  # every linear map of both blocks: four of attention, three of the MLP
