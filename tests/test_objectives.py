"""The losses against plain references: loops, one sequence at a time, the whole vocabulary at every step."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
import toys
from torch import Tensor

from mmgem.data.batches import Batch
from mmgem.models.network import MMGEMNetwork
from mmgem.tasks.image_text.captioning import caption_loss
from mmgem.tasks.image_text.config import CaptionConfig, ContrastiveConfig
from mmgem.tasks.image_text.contrastive import contrastive_terms
from mmgem.tasks.image_text.items import embed_items


def loss_of(network: MMGEMNetwork, images: Tensor, texts: Tensor, batch: Batch, **options: object) -> Tensor:
    config = ContrastiveConfig(**options)  # type: ignore[arg-type]
    return contrastive_terms(network, images, texts, batch, config)["contrastive_loss"]


@pytest.fixture(scope="module")
def network() -> MMGEMNetwork:
    return toys.network("qwen2", dim=8)


def test_one_caption_an_image_is_clip(network: MMGEMNetwork) -> None:
    batch = toys.batch(network, images=5)
    images, texts = torch.randn(5, 8), torch.randn(5, 8)
    logits = network.logit_scale.exp() * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    labels = torch.arange(5)
    expected = F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)
    torch.testing.assert_close(loss_of(network, images, texts, batch), expected)


def test_captions_of_an_image_share_its_target(network: MMGEMNetwork) -> None:
    batch = toys.batch(network, images=3, each=2)
    batch.text_owner = torch.tensor([0, 2, 2, 1, 2, 1])
    images, texts = torch.randn(3, 8), torch.randn(6, 8)
    logits = network.logit_scale.exp() * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    rows, columns = logits.log_softmax(1), logits.log_softmax(0)
    to_texts = [
        -torch.stack([rows[i, j] for j in range(6) if batch.text_owner[j] == i]).mean() for i in range(3)
    ]
    to_images = [-columns[batch.text_owner[j], j] for j in range(6)]
    expected = torch.stack(to_texts).mean() + torch.stack(to_images).mean()
    torch.testing.assert_close(loss_of(network, images, texts, batch), expected)


def test_sigmoid_loss(network: MMGEMNetwork) -> None:
    batch = toys.batch(network, images=3, each=2)
    biased = copy.deepcopy(network)
    biased.logit_bias.data.fill_(-3.0)
    images, texts = torch.randn(3, 8), torch.randn(6, 8)
    expected = torch.tensor(0.0)
    for i in range(3):
        for j in range(6):
            z = biased.logit_scale.exp() * F.cosine_similarity(images[i], texts[j], dim=0) + biased.logit_bias
            expected = expected + F.softplus(-z if int(batch.text_owner[j]) == i else z) / 6
    loss = loss_of(biased, images, texts, batch, loss="sigmoid")
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert biased.logit_bias.grad is not None


def test_soft_targets_follow_the_teacher(network: MMGEMNetwork) -> None:
    batch = toys.batch(network, images=3, each=2)
    batch.teacher_texts = F.normalize(torch.randn(6, 4), dim=1)
    images, texts = torch.randn(3, 8), torch.randn(6, 8)
    logits = network.logit_scale.exp() * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    seen = F.normalize(torch.stack([batch.teacher_texts[2 * i : 2 * i + 2].mean(0) for i in range(3)]), dim=1)
    similar = seen @ batch.teacher_texts.T / 0.1
    hard = (batch.text_owner[None] == torch.arange(3)[:, None]).float()
    rows = 0.7 * hard / 2 + 0.3 * similar.softmax(1)
    columns = 0.7 * hard + 0.3 * similar.softmax(0)
    expected = -(rows * logits.log_softmax(1)).sum(1).mean() - (columns * logits.log_softmax(0)).sum(0).mean()
    loss = loss_of(network, images, texts, batch, distill_weight=0.3, teacher_temperature=0.1)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_target_rows_sum_to_one(network: MMGEMNetwork, share: float) -> None:
    # Where all pairs are equally similar, -log P is the same everywhere: the loss is it times the sums.
    batch = toys.batch(network, images=3, each=2)
    batch.teacher_texts = F.normalize(torch.randn(6, 4), dim=1)
    loss = loss_of(network, torch.ones(3, 8), torch.ones(6, 8), batch, distill_weight=share)
    torch.testing.assert_close(loss, torch.tensor([3.0, 6.0]).log().sum())


def reference_caption_loss(network: MMGEMNetwork, batch: Batch, smoothing: float = 0.0) -> Tensor:
    """Every caption by itself through the library's own causal model, the head at every position."""
    visual = network.encode_image(network.encoder.trainable_head(batch.features))
    losses = []
    for ids, owner in zip(batch.captions, batch.caption_owner.tolist(), strict=True):
        prefix = network.project_visual_prefix(visual[owner : owner + 1])[0]
        inputs = torch.cat([prefix, network.cap_token[None], network.llm.embed(ids)])
        logits = network.llm.lm(inputs_embeds=inputs[None]).logits[0]
        targets = torch.full((len(inputs),), -100)
        targets[len(prefix) :] = torch.cat([ids, torch.tensor([0])])
        some = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
        losses.append(some[targets >= 0])
    return torch.cat(losses).mean()


@pytest.mark.parametrize("llm", ["llama", "gpt2", "gemma2"])
def test_captioning_loss_equals_unpacked_reference(llm: str) -> None:
    network = toys.network(llm, visual_tokens=2, visual_grid=2)
    batch = toys.batch(network, images=4, each=2)
    for smoothing in (0.0, 0.1):
        with torch.no_grad():
            loss = toys.losses(network, batch, "captioning", caption__label_smoothing=smoothing)[
                "caption_loss"
            ]
            expected = reference_caption_loss(network, batch, smoothing)
        torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)


def gradients(network: MMGEMNetwork, loss: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def test_captioning_gradients_equal_unpacked_reference() -> None:
    network = toys.network("qwen2")
    batch = toys.batch(network, images=3, each=2)
    ours = gradients(network, toys.losses(network, batch, "captioning")["caption_loss"])
    theirs = gradients(network, reference_caption_loss(network, batch))
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_joint_is_the_sum_of_its_parts(attention: str) -> None:
    network = toys.network("llama", attention=attention)
    batch = toys.batch(network, images=4, each=2)
    both = toys.losses(network, batch, contrastive__weight=0.7, caption__weight=1.9)
    embedding = toys.losses(network, batch, "contrastive")["contrastive_loss"]
    generation = toys.losses(network, batch, "captioning")["caption_loss"]
    torch.testing.assert_close(both["contrastive_loss"], 0.7 * embedding, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both["caption_loss"], 1.9 * generation, atol=1e-5, rtol=1e-5)
    ours = gradients(network, both["contrastive_loss"] + both["caption_loss"])
    apart = gradients(network, 0.7 * embedding + 1.9 * generation)
    assert ours.keys() == apart.keys()
    for name, gradient in apart.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-5, rtol=1e-4)


def test_names_and_totals(network: MMGEMNetwork) -> None:
    batch = toys.batch(network)
    assert {name: set(toys.losses(network, batch, name)) for name in toys.ONLY} == {
        "joint": {"contrastive_loss", "caption_loss", "similarity_margin"},
        "contrastive": {"contrastive_loss", "similarity_margin"},
        "captioning": {"caption_loss"},
    }


def states_of(network: MMGEMNetwork, batch: Batch) -> Tensor:
    prefixes = network.project_visual_prefix(
        network.encode_image(network.encoder.trainable_head(batch.features))[batch.caption_owner]
    )
    return toys.packed(network, captions=batch.captions, prefixes=prefixes)[1]


@pytest.mark.parametrize("llm", ["qwen2", "gemma2"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_sampled_vocabulary_is_exact_where_all_tokens_are_in_use(llm: str, smoothing: float) -> None:
    network = toys.network(llm)
    batch = dataclasses.replace(toys.batch(network), vocabulary=torch.arange(network.llm.vocabulary))
    with torch.no_grad():
        states = states_of(network, batch)
        exact = caption_loss(network, states, batch, CaptionConfig(label_smoothing=smoothing))
        sampled = CaptionConfig(label_smoothing=smoothing, sampled_softmax=7)
        torch.testing.assert_close(caption_loss(network, states, batch, sampled), exact)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_sampled_vocabulary_estimates_the_exact_loss(smoothing: float) -> None:
    network = toys.network("qwen2")
    batch = toys.batch(network, images=2)
    assert batch.vocabulary is not None
    assert len(batch.vocabulary) < 20
    config = CaptionConfig(label_smoothing=smoothing)
    sampled = dataclasses.replace(config, sampled_softmax=64)
    torch.manual_seed(0)
    with torch.no_grad():
        states = states_of(network, batch)
        exact = float(caption_loss(network, states, batch, config))
        used_only = F.cross_entropy(
            network.llm.logits_of(states, batch.vocabulary),
            torch.searchsorted(batch.vocabulary, batch.caption_targets),
        )
        draws = torch.stack([caption_loss(network, states, batch, sampled) for _ in range(400)])
    # Jensen: the logarithm of an unbiased sum is a little low; it must be close, not equal.
    assert float(draws.mean()) == pytest.approx(exact, abs=0.02)
    assert float(draws.std()) > 0
    assert abs(float(draws.mean()) - exact) < 0.2 * abs(float(used_only) - exact)


def test_sampled_gradients_reach_the_head() -> None:
    network = toys.network("llama")
    batch = toys.batch(network)
    gradients(network, toys.losses(network, batch, "captioning", caption__sampled_softmax=16)["caption_loss"])
    head = network.llm.lm.get_output_embeddings().weight.grad
    assert head is not None
    assert torch.isfinite(head).all()
    assert (head[batch.caption_targets.unique()] != 0).any(1).all()


def test_items_are_whole_images_then_boxes(network: MMGEMNetwork) -> None:
    batch = toys.batch(network, images=4)
    side = float(network.encoder.size)
    batch.boxes = torch.tensor([[[0, 0, side, side / 2], [1, 2, 9, 30]], [[4, 4, 20, 28], [0, 0, 0, 0]]])
    batch.box_valid = torch.tensor([[True, True], [True, False]])
    maps = network.encoder.trainable_head(batch.features)
    batch.features, batch.box_features = batch.features[:2], batch.features[2:]
    items = embed_items(network, batch)
    expected = [network.encode_image(maps[i : i + 1])[0] for i in (0, 1)]
    for image, box in ((2, batch.boxes[0, 0]), (2, batch.boxes[0, 1]), (3, batch.boxes[1, 0])):
        expected.append(network.encode_image(maps[image : image + 1], box[None, None])[0, 0])
    torch.testing.assert_close(items, torch.stack(expected))
    batch.features = batch.features[:0]
    torch.testing.assert_close(embed_items(network, batch), torch.stack(expected[2:]))


def test_the_same_thing_is_no_negative(network: MMGEMNetwork) -> None:
    batch = toys.batch(network, images=4)
    batch.photos = torch.tensor([0, 1, 0, 2])  # items 0 and 2 show one photo
    batch.text_keys = torch.tensor([5, 6, 7, 6])  # items 1 and 3 are told the same
    images, texts = torch.randn(4, 8), torch.randn(4, 8)
    logits = network.logit_scale.exp() * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    same = torch.zeros(4, 4, dtype=torch.bool)
    same[[0, 2, 1, 3], [2, 0, 3, 1]] = True
    logits = logits.masked_fill(same, -torch.inf)
    labels = torch.arange(4)
    expected = F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)
    torch.testing.assert_close(loss_of(network, images, texts, batch, mask_false_negatives=True), expected)
    batch.teacher_texts = F.normalize(torch.randn(4, 3), dim=1)
    soft = loss_of(network, images, texts, batch, mask_false_negatives=True, distill_weight=0.5)
    assert torch.isfinite(soft)
    # With nothing the same, nothing changes.
    batch.photos, batch.text_keys = torch.arange(4), torch.arange(4)
    plain = loss_of(network, images, texts, batch)
    torch.testing.assert_close(loss_of(network, images, texts, batch, mask_false_negatives=True), plain)
