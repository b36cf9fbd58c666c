"""The systems MM-GEM is compared with are what their papers say: losses, masks, what trains and sees what."""

from __future__ import annotations

import json
from typing import Any

import open_clip_losses
import pytest
import related_toys
import torch
import torch.nn.functional as F
import toys
from related_toys import SYSTEMS
from torch import Tensor

from mmgem.config import OptimConfig
from mmgem.distributed.world import SINGLE_PROCESS
from mmgem.errors import ConfigError, UsageError
from mmgem.inference.captioning import generate_captions
from mmgem.models.cross_attention import CrossAttention, MultiHeadAttention
from mmgem.models.network import MMGEMNetwork
from mmgem.search.rerank import text_log_probs
from mmgem.tasks.image_text.captioning import caption_loss
from mmgem.tasks.image_text.config import CaptionConfig, ContrastiveConfig
from mmgem.tasks.image_text.contrastive import contrastive_terms
from mmgem.tasks.related.blip import hard_negatives
from mmgem.tasks.related.fromage import SayRetConfig, SayRetTerm
from mmgem.train.optim import configure_trainable

CAPTIONING = [name for name in SYSTEMS if name not in ("clip", "siglip")]
EMBEDDING = ["mmgem", "clip", "siglip", "fromage", "grit", "coca", "blip"]
END = 0


def close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def seen(network: MMGEMNetwork, count: int = 3, seed: int = 1) -> Tensor:
    """What is kept of random images."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(count, 4, 4, network.encoder.channels, generator=generator)
    return network.encode_image(maps)


def open_gates(network: MMGEMNetwork) -> None:
    """Let Flamingo's layers say something."""
    for module in network.modules():
        if isinstance(module, CrossAttention) and module.gates is not None:
            torch.nn.init.constant_(module.gates, 0.7)


def test_texts_that_share_an_image_are_matched_as_with_copies_of_it() -> None:
    network = related_toys.network("blip")
    ids = [torch.tensor([3, 4]), torch.tensor([5]), torch.tensor([6, 7, 8]), torch.tensor([4])]
    of = [2, 0, 2, 1]
    results = []
    for shared in (True, False):
        visual = seen(network).requires_grad_()
        logits = network.match(visual, ids, of) if shared else network.match(visual[of], ids)
        network.zero_grad()
        logits.square().sum().backward()
        layer = network.image_layers["0"].attention.key.weight
        results.append((logits.detach(), visual.grad, layer.grad.clone()))
    for one, other in zip(*results, strict=True):
        close(one, other, 1e-5)


@pytest.mark.parametrize("system", ["blip", "coca", "flamingo"])
@torch.no_grad()
def test_an_image_is_read_once_for_a_caption(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = related_toys.network(system)
    open_gates(network)
    visual = seen(network)
    layers = [module.attention for module in network.modules() if isinstance(module, CrossAttention)]
    read, plain = [], MultiHeadAttention.keys_values

    def counted(self: MultiHeadAttention, context: Tensor) -> tuple[Tensor, Tensor]:
        read.extend([len(context)] if self in layers else [])
        return plain(self, context)

    monkeypatch.setattr(MultiHeadAttention, "keys_values", counted)
    together = generate_captions(network, visual, END, beams=3, max_tokens=6)
    assert read == [len(visual)] * len(layers)
    alone = [generate_captions(network, one[None], END, beams=3, max_tokens=6)[0] for one in visual]
    assert [caption.ids for caption in together] == [caption.ids for caption in alone]


@pytest.mark.parametrize("system", CAPTIONING)
@torch.no_grad()
def test_captions_are_read_as_they_are_written(system: str) -> None:
    """Beam search on a cache, packed rows and a text alone agree, and the image matters."""
    network = related_toys.network(system)
    open_gates(network)
    prefixes = network.project_visual_prefix(seen(network))
    written = generate_captions(network, prefixes, END, beams=2, max_tokens=5)
    finished = [n for n, caption in enumerate(written) if caption.finished and caption.ids]
    ids = [torch.tensor(written[n].ids) for n in finished] or toys.sequences([4])
    rows = finished or [0]
    packed = text_log_probs(network, prefixes[rows], ids, END)
    for n, row in enumerate(finished):
        assert written[row].log_prob == pytest.approx(float(packed[n]), abs=1e-3)
    texts = toys.sequences([3, 6, 4])
    together = text_log_probs(network, prefixes, texts, END)
    for n in range(3):
        close(text_log_probs(network, prefixes[n : n + 1], texts[n : n + 1], END)[0], together[n], 1e-3)
    assert not torch.allclose(text_log_probs(network, prefixes.flip(0), texts, END), together, atol=1e-3)


@pytest.mark.parametrize("system", EMBEDDING)
@torch.no_grad()
def test_texts_embed_alike_alone_and_beside_captions(system: str) -> None:
    network = related_toys.network(system)
    texts = toys.sequences([3, 6, 4])
    alone = torch.cat([network.encode_text([ids]) for ids in texts])
    assert alone.shape == (3, 8)
    close(network.encode_text(texts), alone)
    if network.captions:
        visual = seen(network)
        close(network.read(texts, texts, visual).embeddings, alone)
        other = toys.sequences([5, 2, 4], seed=3)
        both = network.read(texts, other, visual)
        close(both.embeddings, alone)
        close(both.prediction_states, network.read([], other, visual).prediction_states)
        same = network.read(texts, texts, visual)
        close(same.prediction_states, network.read([], texts, visual).prediction_states)
    assert network.image_embeddings(seen(network)).shape == (3, 8)


@pytest.mark.parametrize("system", list(SYSTEMS))
def test_what_a_system_has_not_is_refused_in_a_line(system: str) -> None:
    network, texts = related_toys.network(system), toys.sequences([3])
    assert (system in EMBEDDING, system in CAPTIONING) == (network.embeds, network.captions)
    assert network.regions == (system == "mmgem")
    kind = network.config.kind
    if not network.embeds:
        for call in (lambda: network.encode_text(texts), lambda: network.image_embeddings(seen(network))):
            with pytest.raises(UsageError, match=f"this model has no embeddings .*'{kind}'"):
                call()
    if not network.captions:
        with pytest.raises(UsageError, match=f"this model writes no captions .*'{kind}'"):
            network.project_visual_prefix(seen(network))
    if not network.regions:
        with pytest.raises(UsageError, match="this model has no regions"):
            network.encode_image(torch.randn(1, 4, 4, 16), torch.tensor([[[0.0, 0.0, 8.0, 8.0]]]))
        with pytest.raises(UsageError, match="this model has no regions"):
            network.window_embeddings(torch.randn(1, 4, 16))


@pytest.mark.parametrize("system", list(SYSTEMS))
@torch.no_grad()
def test_half_precision_says_about_the_same(system: str) -> None:
    network, half = (related_toys.network(system) for _ in range(2))
    open_gates(network)
    open_gates(half)
    half.to_inference_dtype(torch.bfloat16)
    texts = toys.sequences([3, 6, 4])
    if network.embeds:
        assert F.cosine_similarity(network.encode_text(texts), half.encode_text(texts)).min() > 0.99
    if network.captions:
        prefixes = network.project_visual_prefix(seen(network))
        one, other = (text_log_probs(n, prefixes, texts, END) for n in (network, half))
        assert (one - other).abs().max() < 0.1 * one.abs().max()
        generate_captions(half, prefixes, END, beams=2, max_tokens=3)


def test_options_of_a_kind_are_checked() -> None:
    for config, said in (
        ({"deep": 2}, r"model\.config\.deep: unknown field of 'coca' \(known: queries, heads\)"),
        ({"queries": 0}, r"model\.config\.queries: 0 is not a whole number of 1 or more"),
    ):
        with pytest.raises(ConfigError, match=said):
            related_toys.network("coca", config=config)
    with pytest.raises(ConfigError, match=r"model\.kind: no network is called 'q' \(known: blip, clipcap"):
        related_toys.network("mmgem", kind="q")
    with pytest.raises(ConfigError, match=r"model\.connector\.config\.heads: 3 does not divide"):
        related_toys.network("clipcap_transformer").config.connector.config["heads"] = 3
        config = related_toys.SYSTEMS["clipcap_transformer"]["model__connector__config"] | {"heads": 3}
        from mmgem.models.connectors import CONNECTORS

        CONNECTORS["clipcap_transformer"].build(16, 16, 3, config)


# CLIP, SigLIP and CoCa: the losses of open_clip.


class _Head(torch.nn.Module):
    """An output head in the place of a network's LLM."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = weight

    def logits(self, states: Tensor) -> Tensor:
        return states @ self.weight.T


@pytest.mark.parametrize("system", ["clip", "siglip", "coca"])
def test_losses_and_gradients_are_open_clips(system: str) -> None:
    recorded = json.loads(open_clip_losses.RECORDED.read_text())[system]
    of = open_clip_losses.inputs()
    network: Any = related_toys.network("mmgem")
    scale = torch.tensor(open_clip_losses.LOG_SCALE, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(open_clip_losses.BIAS, dtype=torch.float64, requires_grad=True)
    for name, value in (("logit_scale", scale), ("logit_bias", bias)):
        del network._parameters[name]
        setattr(network, name, value)
    batch = toys.batch(network, images=6)
    changes = SYSTEMS[system]
    config = ContrastiveConfig(loss=changes.get("image_text__contrastive__loss", "softmax"))
    loss = contrastive_terms(network, of["images"], of["texts"], batch, config)["contrastive_loss"]
    loss = changes.get("image_text__contrastive__weight", 1.0) * loss
    if weight := changes.get("image_text__caption__weight", 1.0):
        network.llm = _Head(of["head"])
        batch.caption_targets = of["tokens"].flatten()
        states = of["states"].flatten(0, 1)
        loss = loss + weight * caption_loss(network, states, batch, CaptionConfig())
    loss.backward()
    assert float(loss.detach()) == pytest.approx(recorded["loss"], rel=1e-5)
    got = {**of, "log_scale": scale, "bias": bias}
    for name, gradient in recorded["grads"].items():
        close(got[name].grad, torch.tensor(gradient, dtype=torch.float64), 1e-5)


# What trains.


def trained(system: str) -> set[str]:
    network = related_toys.network(system)
    optim = OptimConfig(lr_llm=SYSTEMS[system].get("optim__lr_llm", 1e-3), lr_embeddings=1e-3, lr_encoder=0.0)
    for group in network.frozen:
        setattr(optim, f"lr_{group}", 0.0)
    if system == "clipcap_transformer":
        optim.lr_embeddings = 0.0
    configure_trainable(network, optim, cached=True)
    return {name for name, p in network.named_parameters() if p.requires_grad}


def test_frozen_systems_train_exactly_what_is_named() -> None:
    assert trained("minigpt4") == {"visual_connector.weight", "visual_connector.bias"}
    maps = ("visual_projection.1", "text_projection.1", "visual_connector")
    wanted = {f"{name}.{part}" for name in maps for part in ("weight", "bias")}
    assert trained("fromage") == wanted | {"emb_token", "logit_scale"}
    assert {name.partition(".")[0] for name in trained("flamingo")} == {
        "resampler",
        "image_layers",
        "cap_token",
    }
    assert {name.partition(".")[0] for name in trained("clipcap_transformer")} == {"visual_connector"}
    assert {name.partition(".")[0] for name in trained("clipcap")} == {"visual_connector", "llm"}
    assert {name.partition(".")[0] for name in trained("clip")} == {
        *("llm", "visual_projection", "text_projection", "emb_token", "logit_scale", "logit_bias"),
    }
    assert "logit_scale" not in trained("grit")


# Flamingo and CoCa.


@torch.no_grad()
def test_flamingo_begins_as_its_llm() -> None:
    network = related_toys.network("flamingo")
    (ids,) = toys.sequences([5])
    prefixes = network.project_visual_prefix(seen(network, 1))
    states = network.forward_packed(network.caption_segments([ids], prefixes)).prediction_states
    inputs = torch.cat([network.cap_token[None], network.llm.embed(ids)])[None]
    assert torch.equal(states, network.llm(inputs, torch.arange(6)[None])[0])
    open_gates(network)
    changed = network.forward_packed(network.caption_segments([ids], prefixes)).prediction_states
    assert not torch.allclose(changed, states, atol=1e-3)


@torch.no_grad()
def test_coca_embeds_by_its_first_half_alone() -> None:
    network: Any = related_toys.network("coca")
    texts, visual = toys.sequences([3, 5]), seen(network, 2)
    before = network.read(texts, texts, visual)
    for p in (*network.llm.blocks[1].parameters(), *network.image_layers.parameters()):
        p.mul_(1.5)
    after = network.read(texts, texts, visual)
    assert torch.equal(before.embeddings, after.embeddings)
    assert not torch.allclose(before.prediction_states, after.prediction_states, atol=1e-3)
    runs = []
    handle = network.llm.blocks[1].register_forward_hook(lambda *_: runs.append(1))
    network.encode_text(texts)
    handle.remove()
    assert not runs  # texts alone stop in the middle
    assert network.project_visual_prefix(visual).shape == (2, 3, 16)


# BLIP.


def test_hard_negatives_are_never_positives() -> None:
    owner = torch.tensor([0, 0, 1, 2, 2, 2, 3])
    for seed in range(50):
        torch.manual_seed(seed)
        logits = 60 * torch.randn(7, 4)
        images, texts = hard_negatives(logits, owner)
        assert (images != owner).all() and (owner[texts] != owner).all()
    # Near ones are drawn most.
    near = torch.full((7, 4), -20.0)
    near[:, 3] = 20.0
    near[6, 1] = 20.0
    images, _ = hard_negatives(near, owner)
    assert images[:6].tolist() == [3] * 6 and int(images[6]) == 1


@torch.no_grad()
def test_blip_shares_all_but_self_attention() -> None:
    network: Any = related_toys.network("blip")
    decoder, encoder = dict(network.llm.named_parameters()), dict(network.text_encoder.named_parameters())
    assert encoder.keys() == {name for name in decoder if ".self_attn." in name}
    assert not any(p is decoder[name] for name, p in encoder.items())
    for ours, theirs in zip(network.text_encoder.blocks, network.llm.blocks, strict=True):
        assert ours.mlp is theirs.mlp and ours.input_layernorm is theirs.input_layernorm
    ours, theirs = network.text_encoder.body, network.llm.body
    assert ours.embed_tokens is theirs.embed_tokens and ours.norm is theirs.norm
    # The encoder looks both ways, and at the image only to match.
    (ids,) = toys.sequences([5])
    visual = seen(network, 1)
    other = ids.clone()
    other[-1] = (ids[-1] + 1) % network.llm.vocabulary
    states = [network.read([x]).hidden_states[0] for x in (ids, other)]
    assert not torch.allclose(*states, atol=1e-4)
    written = [network.read([], [x], visual).prediction_states[:5] for x in (ids, other)]
    close(*written)
    scores = network.match(seen(network, 2), [ids, ids])
    assert scores.shape == (2, 2) and not torch.allclose(scores[0], scores[1], atol=1e-4)
    close(network.match_scores(seen(network, 2), [ids, ids]), scores[:, 1])


# GRIT.


@torch.no_grad()
def test_grits_two_masks_and_mean() -> None:
    network = related_toys.network("grit")
    (ids,) = toys.sequences([5])
    inputs = torch.cat([network.emb_token[None], network.llm.embed(ids)])[None]
    everything = torch.ones(1, 6, 6, dtype=torch.bool)
    states = network.llm(inputs, torch.arange(6)[None], everything)[0]
    close(network.encode_text([ids])[0], network.text_projection(states[1:].mean(0)))
    visual, other = seen(network, 1), ids.clone()
    other[-1] = (ids[-1] + 1) % network.llm.vocabulary
    written = [network.read([], [x], visual).prediction_states[:5] for x in (ids, other)]
    close(*written)


# ClipCap.


@torch.no_grad()
def test_clipcaps_mappers() -> None:
    mlp = related_toys.network("clipcap").visual_connector
    assert [tuple(p.shape) for p in mlp.parameters()] == [(32, 16), (32,), (64, 32), (64,)]
    network = related_toys.network("clipcap_transformer")
    mapper: Any = network.visual_connector
    assert mapper.linear.weight.shape == (2 * 16, 16) and mapper.queries.shape == (3, 16)
    visual = seen(network, 2)
    prefix = network.project_visual_prefix(visual)
    assert prefix.shape == (2, 3, 16) and network.prefix_length == 3
    close(mapper(visual[1:])[0], prefix[1])
    assert not torch.allclose(prefix[0], prefix[1])
    assert related_toys.network("minigpt4").prefix_length == 4


# FROMAGe.


def test_fromage_learns_to_say_ret() -> None:
    network: Any = related_toys.network("fromage")
    batch = toys.batch(network, images=3)
    output = network.read(batch.texts)
    states = output.hidden_states[output.token_indices]
    loss = SayRetTerm(SayRetConfig(), "x").loss(network, states, batch, float(len(states)))["say_ret_loss"]
    total, count, words = torch.tensor(0.0), 0, network.llm.vocabulary
    for ids in batch.texts:
        own = network.llm(network.llm.embed(ids)[None], torch.arange(len(ids))[None])[0]
        logits = torch.cat([network.llm.logits(own), (own @ network.emb_token)[:, None]], 1)
        targets = torch.cat([ids[1:], torch.tensor([words])])
        total, count = total + F.cross_entropy(logits, targets, reduction="sum"), count + len(ids)
    assert float(loss.detach()) == pytest.approx(float(total.detach()) / count, rel=1e-4)


def test_what_a_batch_of_each_system_gives() -> None:
    """The names of the losses, and that all that trains learns from them."""
    from pathlib import Path

    from mmgem.tasks.base import tasks_of, total_loss

    for system, changes in SYSTEMS.items():
        made = toys.recipe(Path("run"), Path("data.jsonl"), Path("lm"), Path("clip"), **changes)
        network = related_toys.network(system)
        open_gates(network)
        configure_trainable(network, made.optim, cached=True)
        (task,) = tasks_of(made)
        torch.manual_seed(0)
        terms = task.forward(network.train(), toys.batch(network, each=2), SINGLE_PROCESS)
        loss = total_loss(terms)
        assert loss is not None and loss.isfinite()
        loss.backward()
        unused = {n for n, p in network.named_parameters() if p.requires_grad and p.grad is None}
        assert unused <= {"logit_bias", "llm.lm.lm_head.weight"}, (system, unused)
