"""The embeddings of what a batch holds: whole images, then boxes; and the texts drawn beside."""

from __future__ import annotations

import torch
from torch import Tensor

from mmgem.data.batches import Batch
from mmgem.models.llm import autocast
from mmgem.models.network import MMGEMNetwork
from mmgem.models.packing import PackedOutput
from mmgem.models.pooling import pool_segments


def embed_items(network: MMGEMNetwork, batch: Batch) -> Tensor:
    """Visual embeddings ``(V, 1 + tiles, D)`` of the batch's whole images, then of its boxes; that of a clip
    is the mean of its frames'."""
    items = []
    if len(batch.features) or batch.pixels is not None:
        frames = network.encode_image(_maps(network, batch.features, batch.pixels))
        items.append(frames if batch.frames is None else pool_segments(frames, batch.frames))
    has_boxes = batch.box_features is not None or batch.box_pixels is not None
    if has_boxes and batch.boxes is not None and batch.box_valid is not None:
        maps = _maps(network, batch.box_features, batch.box_pixels)
        boxes, valid = batch.boxes.to(maps.device), batch.box_valid.to(maps.device)
        items.append(network.encode_image(maps, boxes)[valid])
    return torch.cat(items) if items else network.emb_token.new_zeros(0, 1, network.visual_width)


def _maps(network: MMGEMNetwork, features: Tensor | None, pixels: Tensor | None) -> Tensor:
    encoder, inputs = network.encoder, features if pixels is None else pixels
    assert inputs is not None
    with autocast(inputs, encoder.training_dtype if encoder.training else torch.float32):
        return encoder.trainable_head(inputs if pixels is None else encoder.frozen_stem(pixels)).float()


def item_embeddings(network: MMGEMNetwork, visual: Tensor) -> Tensor:
    """The embeddings ``(V, D)`` in ``visual`` ``(V, n, W)`` of :func:`embed_items`; empty ones of a
    network that has none."""
    return network.image_embeddings(visual) if network.embeds else visual.new_zeros(len(visual), 0)


def text_tokens(batch: Batch) -> int:
    """How many tokens the texts of a batch have."""
    return sum(map(len, batch.texts))


def text_states(output: PackedOutput, batch: Batch) -> Tensor:
    """The hidden states ``(T, H)`` at the tokens of a batch's texts in a pass that read them first."""
    return output.hidden_states[output.token_indices[: text_tokens(batch)].to(output.hidden_states.device)]


def drawn_texts(batch: Batch) -> list[Tensor]:
    """Token ids of all texts that terms drew, section after section."""
    return [ids for drawn in batch.drawn.values() for ids in drawn.texts]


def split_drawn(embeddings: Tensor, batch: Batch) -> dict[str, Tensor]:
    """The ``embeddings`` of :func:`drawn_texts`, by section."""
    parts = embeddings.split([len(drawn.texts) for drawn in batch.drawn.values()])
    return dict(zip(batch.drawn, parts, strict=True))
