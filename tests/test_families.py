"""Every encoder family with every LLM family: forward, a training step, save and load, a caption."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import toys

from mmgem.checkpoints.model_folder import load_model, save_model
from mmgem.config import OptimConfig
from mmgem.encoders.transformers_vision import TransformersEncoder
from mmgem.errors import ConfigError
from mmgem.inference.captioning import generate_captions
from mmgem.models.llm import LLM
from mmgem.train.optim import build_optimizer, configure_trainable

# Parts of published encoders that come after the map: they are kept, and learn nothing.
AFTER_THE_MAP = {
    "clip": ("encoder.net.post_layernorm.",),
    "siglip": ("encoder.net.head.",),
    "vit": ("encoder.net.pooler.",),
    "convnext": ("encoder.net.layernorm.",),
    "dinov2": ("encoder.net.embeddings.mask_token",),
    "dinov3": ("encoder.net.embeddings.mask_token",),
}


PAIRS = [
    *(
        (encoder, llm)
        for encoder in ("efficientnet_lite0", "clip", "siglip", "dinov2", "convnext")
        for llm in ("llama", "qwen3", "gpt2", "gemma3")
    ),
    *(("vit", "qwen2"), ("dinov3", "gemma2")),
]


@pytest.mark.parametrize(("encoder", "llm"), PAIRS)
def test_family(encoder: str, llm: str, tmp_path: Path) -> None:
    network = toys.network(llm, encoder, visual_tokens=2)
    side = network.encoder.size
    pixels = torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(1))
    maps = network.encoder(pixels)
    assert maps.ndim == 4
    assert maps.shape[::3] == (3, network.encoder.channels)

    batch = toys.batch(network, images=3, each=2)
    batch.features = network.encoder.frozen_stem(pixels)
    options = OptimConfig(lr_encoder=1e-3, lr_embeddings=1e-3)
    adam = build_optimizer(network, configure_trainable(network, options, cached=False), options)
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    losses = toys.losses(network.train(), batch)
    loss = losses["contrastive_loss"] + losses["caption_loss"]
    assert torch.isfinite(loss)
    loss.backward()
    adam.step()
    unused = ("logit_bias", *AFTER_THE_MAP.get(encoder, ()))
    for name, p in network.named_parameters():
        assert p.requires_grad
        learns = not name.startswith(unused)
        assert (p.grad is not None and bool(torch.isfinite(p.grad).all())) == learns, name
        assert (not torch.equal(p, before[name])) == learns or p.grad is None or not p.grad.any(), name

    network.eval()
    save_model(tmp_path / "model", network, toys.tokenizer(toys.prep(side)), "")
    loaded, tokenizer = load_model(tmp_path / "model")
    with torch.no_grad():
        visual = network.encode_image(network.encoder(pixels))
        assert torch.equal(loaded.encode_image(loaded.encoder(pixels)), visual)
        assert torch.equal(loaded.encode_text(batch.texts), network.encode_text(batch.texts))
        prefixes = network.project_visual_prefix(visual)
        captions = generate_captions(network, prefixes, tokenizer.end, beams=2, max_tokens=5)
        assert captions == generate_captions(
            loaded, loaded.project_visual_prefix(visual), tokenizer.end, 2, 5
        )
    assert len(captions) == 3


@pytest.mark.parametrize("llm", toys.LLMS)
def test_logits_are_the_librarys(llm: str) -> None:
    adapter = toys.network(llm).llm
    ids = torch.randint(1, len(toys.WORDS), (2, 7))
    with torch.no_grad():
        mask = torch.ones(2, 7, 7, dtype=torch.bool).tril()
        states = adapter(adapter.embed(ids), torch.arange(7).expand(2, -1), mask)
        expected = adapter.lm(input_ids=ids).logits
        torch.testing.assert_close(adapter.logits(states), expected, atol=1e-5, rtol=1e-5)
        some = torch.tensor([5, 0, 31])
        torch.testing.assert_close(adapter.logits_of(states, some), expected[..., some], atol=1e-5, rtol=1e-5)
    assert (adapter.width, adapter.vocabulary, len(adapter.blocks)) == (16, len(toys.WORDS), 2)


@pytest.mark.parametrize("encoder", ["clip", "siglip", "dinov2", "dinov3", "vit", "convnext"])
def test_maps_are_in_reading_order(encoder: str) -> None:
    """What changes in one corner of the picture changes most in that corner of the map."""
    made = toys.network(encoder=encoder).encoder
    plain = torch.zeros(1, 3, made.size, made.size)
    with torch.no_grad():
        base = made(plain)
        for down in (0, 1):
            for right in (0, 1):
                pixels = plain.clone()
                half = made.size // 2
                pixels[..., down * half : (down + 1) * half, right * half : (right + 1) * half] = torch.randn(
                    1, 3, half, half
                )
                change = (made(pixels) - base).abs().sum(-1)[0]
                cells = change.shape[0] // 2
                corners = change.unflatten(0, (2, cells)).unflatten(2, (2, cells)).sum((1, 3))
                assert corners.argmax() == 2 * down + right


@pytest.mark.parametrize("encoder", ["clip", "siglip", "dinov2", "dinov3", "vit", "convnext"])
def test_other_input_sizes(encoder: str) -> None:
    config = toys.ENCODERS[encoder].config
    made = TransformersEncoder({**config, "size": 2 * config["image_size"]})
    assert made.size == 2 * config["image_size"]
    with torch.no_grad():
        cells = 2 if encoder == "convnext" else 4
        assert made(torch.randn(1, 3, made.size, made.size)).shape[1:3] == (2 * cells, 2 * cells)


def test_configs_that_cannot_be_built_are_refused() -> None:
    for build, where in ((LLM, "llm"), (TransformersEncoder, "encoder")):
        with pytest.raises(ConfigError, match=rf"model\.{where}\.config: model_type is missing"):
            build({})
        with pytest.raises(ConfigError, match=rf"model\.{where}\.config: .*nonsense"):
            build({"model_type": "nonsense"})
    with pytest.raises(ConfigError, match=r"model\.encoder\.freeze_until: 17"):
        toys.ENCODERS["cut"] = toys.EncoderConfig(freeze_until=17)
        try:
            toys.network(encoder="cut")
        finally:
            del toys.ENCODERS["cut"]


def test_batch_norm_keeps_its_statistics() -> None:
    config = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}
    encoder = TransformersEncoder(config | {"layer_type": "basic"}).train()
    assert encoder.net.training
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    assert any("running_mean" in name for name in before)
    encoder(torch.randn(2, 3, 32, 32))
    for name, value in encoder.named_buffers():
        assert torch.equal(value, before[name]), name
