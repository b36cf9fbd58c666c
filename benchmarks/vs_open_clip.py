"""A training step of ours beside OpenCLIP's CoCa, the nearest peer that embeds and captions in one model.

    python -m venv peer && peer/bin/pip install torch torchvision open_clip_torch "transformers>=5" typer rich
    PYTHONPATH=. peer/bin/python benchmarks/vs_open_clip.py [--batch 64] [--repeats 5] [--quick]

(mmgem needs no torchvision, OpenCLIP does: hence an environment of its own; both sides run in it, in one
process, taking turns.) Matched: a ViT of the same patch, width, depth and heads from 224 px, all of it
training; text blocks of the same kind (LayerNorm, GELU, four times the width), width and heads; vocabulary,
batch, texts, AdamW in float32. CoCa has a text encoder and a decoder with cross-attention; we have one LLM
that does both. So there are two matches: as many layers in each of its two as in our one, and as many in all.

CoCa pads texts to 76 tokens, as its configurations do; "cut to the longest" is kinder to it than that.
Ours is shown in parts: the same architecture padded and with the head at all positions, then the head only
where a caption token is predicted, then packed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgem.config import EncoderConfig, LLMConfig, ModelConfig, Recipe, TrainConfig
from mmgem.data.batches import Batch
from mmgem.distributed.world import SINGLE_PROCESS
from mmgem.models.network import MMGEMNetwork
from mmgem.tasks.base import tasks_of
from mmgem.tasks.image_text.contrastive import contrastive_terms
from mmgem.tasks.image_text.items import embed_items

CONTEXT, VOCABULARY, END = 76, 49408, 49407


class Size:
    """The matched numbers."""

    def __init__(self, quick: bool):
        self.vision = (
            {"width": 64, "layers": 2, "heads": 2} if quick else {"width": 384, "layers": 6, "heads": 6}
        )
        self.width, self.heads, self.layers = (64, 2, 2) if quick else (512, 8, 6)
        self.patch, self.side, self.dim = 32, 224, self.width


def texts_of(batch: int) -> list[Tensor]:
    """Token sequences with the lengths of Flickr8k's captions (4 to 29, mean 11.7)."""
    generator = torch.Generator().manual_seed(0)
    lengths = (11.7 + 3.8 * torch.randn(batch, generator=generator)).round().clamp(4, 29).long()
    return [torch.randint(1, END - 1, (int(n),), generator=generator) for n in lengths]


def coca(size: Size, layers: int, context: int) -> nn.Module:
    from open_clip.coca_model import CoCa

    vision = {
        "image_size": size.side,
        "patch_size": size.patch,
        "width": size.vision["width"],
        "layers": size.vision["layers"],
        "head_width": size.vision["width"] // size.vision["heads"],
        "attentional_pool": True,
        "attn_pooler_heads": 8,
        "output_tokens": True,
    }
    text = {
        "context_length": context,
        "vocab_size": VOCABULARY,
        "width": size.width,
        "heads": size.heads,
        "layers": layers,
    }
    made = CoCa(
        embed_dim=size.dim,
        multimodal_cfg={**text, "attn_pooler_heads": 8},
        text_cfg={**text, "embed_cls": True, "output_tokens": True},
        vision_cfg=vision,
    )
    return made.train()


def ours(size: Size) -> MMGEMNetwork:
    encoder = {
        "model_type": "clip_vision_model",
        "hidden_size": size.vision["width"],
        "intermediate_size": 4 * size.vision["width"],
        "num_hidden_layers": size.vision["layers"],
        "num_attention_heads": size.vision["heads"],
        "image_size": size.side,
        "patch_size": size.patch,
    }
    lm = {
        "model_type": "gpt2",
        "vocab_size": VOCABULARY,
        "n_embd": size.width,
        "n_layer": size.layers,
        "n_head": size.heads,
        "n_positions": 128,
        "tie_word_embeddings": False,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }
    config = ModelConfig(
        encoder=EncoderConfig("transformers", config=encoder), llm=LLMConfig(lm), dim=size.dim
    )
    return MMGEMNetwork(config).train()


def coca_loss(model: nn.Module, pixels: Tensor, texts: list[Tensor], context: int) -> Callable[[], Tensor]:
    from open_clip.loss import CoCaLoss

    ids = torch.zeros(len(texts), context, dtype=torch.long)
    for row, tokens in enumerate(texts):
        ids[row, : len(tokens) + 2] = torch.cat([torch.tensor([END - 1]), tokens, torch.tensor([END])])
    loss = CoCaLoss(caption_loss_weight=1.0, clip_loss_weight=1.0)

    def run() -> Tensor:
        out = model(pixels, ids)
        out.pop("logit_bias", None)
        return torch.stack(list(loss(**out, output_dict=True).values())).sum()

    return run


def our_loss(network: MMGEMNetwork, pixels: Tensor, texts: list[Tensor], way: str) -> Callable[[], Tensor]:
    owner, end = torch.arange(len(texts)), torch.tensor([END])
    (task,) = tasks_of(Recipe(TrainConfig(Path("run"))))
    config = task.config
    targets = torch.cat([t for ids in texts for t in (ids, end)])
    batch = Batch(torch.empty(0), texts, owner, texts, owner, targets, pixels=pixels)
    if way == "packed":

        def packed() -> Tensor:
            terms = task.forward(network, batch, SINGLE_PROCESS)
            return terms["contrastive_loss"] + terms["caption_loss"]

        return packed
    full = [F.pad(t, (0, CONTEXT - len(t))) for t in texts]
    labels = torch.full((len(texts), CONTEXT + 1), -100)
    for row, tokens in enumerate(texts):
        labels[row, : len(tokens) + 1] = torch.cat([tokens, end])
    flat = labels.flatten()

    def padded() -> Tensor:
        visual = embed_items(network, batch)
        # Padded with [EMB] behind the padding: the same cost as a real padded batch, if not the same vector.
        embedded = network.forward_packed(network.text_segments(full), CONTEXT + 1).embeddings
        captions = network.caption_segments(full, network.project_visual_prefix(visual))
        states = network.forward_packed(captions, CONTEXT + 2).prediction_states
        if way == "padded, head where predicted":
            chosen = flat >= 0
            generation = F.cross_entropy(network.llm.logits(states[chosen]), flat[chosen])
        else:
            generation = F.cross_entropy(network.llm.logits(states), flat, ignore_index=-100)
        terms = contrastive_terms(network, visual[:, 0], embedded, batch, config.contrastive)
        return terms["contrastive_loss"] + generation

    return padded


class Side:
    """A model with its optimiser and the seconds its steps took."""

    def __init__(self, name: str, model: nn.Module, loss: Callable[[], Tensor]):
        self.name, self.model, self.loss = name, model, loss
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
        self.seconds: list[float] = []

    def step(self) -> None:
        began = time.perf_counter()
        self.optimizer.zero_grad()
        self.loss().backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.seconds.append(time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="toy models, to see that it runs")
    options = parser.parse_args()
    size, texts = Size(options.quick), texts_of(options.batch)
    torch.manual_seed(0)
    pixels = torch.randn(options.batch, 3, size.side, size.side)
    longest = max(len(t) for t in texts) + 2
    sides = []
    for layers, note in ((size.layers, "each"), (size.layers // 2, "in all")):
        for context, cut in ((CONTEXT, ""), (longest, ", cut to the longest")):
            model = coca(size, layers, context)
            name = f"CoCa, {layers} + {layers} layers (match {note}){cut}"
            sides.append(Side(name, model, coca_loss(model, pixels, texts, context)))
    network = ours(size)
    sides += [
        Side(f"mmgem, {size.layers} layers, {way}", network, our_loss(network, pixels, texts, way))
        for way in ("padded, head everywhere", "padded, head where predicted", "packed")
    ]
    for side in sides:
        count = sum(p.numel() for p in side.model.parameters())
        print(f"{side.name:58} {count / 1e6:6.1f} M parameters")
    for round_ in range(options.repeats + 1):
        for side in sides:
            side.step()
            if not round_:  # the first is for warming up
                side.seconds.clear()
    print(
        f"\nbatch {options.batch}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"median of {options.repeats} steps\n"
    )
    best = statistics.median(sides[-1].seconds)
    for side in sides:
        seconds = statistics.median(side.seconds)
        print(
            f"{side.name:58} {seconds:7.2f} s {options.batch / seconds:7.1f} pairs/s {seconds / best:6.2f}x"
        )


if __name__ == "__main__":
    main()
