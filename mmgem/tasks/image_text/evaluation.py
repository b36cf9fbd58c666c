"""Scores on held-out images during training: retrieval, and greedy captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mmgem.data.features import ClipSource, RecordSource
from mmgem.data.records import Record
from mmgem.data.tokens import Tokenizer
from mmgem.evaluate.captions import caption_scores
from mmgem.evaluate.classify import class_embeddings, classification_scores
from mmgem.evaluate.retrieval import retrieval_scores
from mmgem.inference.captioning import generate_captions
from mmgem.inference.texts import embed_texts, unit_rows
from mmgem.models.network import MMGEMNetwork
from mmgem.models.pooling import pool_segments


@torch.inference_mode()
def evaluate(
    network: MMGEMNetwork,
    tokenizer: Tokenizer,
    records: list[Record],
    source: RecordSource,
    names: Sequence[str] = (),
    retrieval: bool = True,
    captions: bool = True,
    batch: int = 64,
) -> dict[str, Any]:
    """Retrieval (percent) and greedy captions of ``records``; of those with a label how many are told by it
    among ``names`` (percent).

    ``score``, by which the best step is chosen, is the mean of three: of the R@1s and R@10s, of CIDEr, of
    the share that is told right; of those that there is data for.
    """
    labelled = [i for i in source.valid if names and retrieval and records[i].label is not None]
    captioned = [i for i in source.valid if records[i].captions]
    shown = sorted({*labelled, *captioned})
    place = {i: row for row, i in enumerate(shown)}
    visual = []
    for start in range(0, len(shown), batch):
        rows = shown[start : start + batch]
        frames = []
        for inputs in source.read(rows, [0] * len(rows)).split(batch):
            features = inputs.to(network.emb_token.device)
            features = features if source.cached else network.encoder.frozen_stem(features)
            frames.append(network.encode_image(network.encoder.trainable_head(features)))
        seen = torch.cat(frames)
        visual.append(pool_segments(seen, source.frames(rows)) if isinstance(source, ClipSource) else seen)
    shown_visual = torch.cat(visual)
    images = shown_visual[[place[i] for i in captioned]]
    scores: dict[str, Any] = {}
    parts: list[float] = []
    if labelled:
        classes = class_embeddings(lambda texts: embed_texts(network, tokenizer, texts, 4 * batch), names)
        rows_of = unit_rows(network.image_embeddings(shown_visual[[place[i] for i in labelled]]))
        targets = [names.index(str(records[i].label)) for i in labelled]
        scores["classes"] = {"top1": classification_scores(rows_of, classes, targets)["top1"]}
        parts.append(float(scores["classes"]["top1"]))
    if retrieval and captioned:
        texts = [c for i in captioned for c in records[i].captions]
        owner = np.repeat(np.arange(len(captioned)), [len(records[i].captions) for i in captioned])
        embedded = embed_texts(network, tokenizer, texts, 4 * batch)
        recalls = retrieval_scores(unit_rows(network.image_embeddings(images)), embedded, owner)
        scores |= {"i2t": recalls["i2t"], "t2i": recalls["t2i"]}
        parts.append(float(np.mean([recalls[d][k] for d in ("i2t", "t2i") for k in ("R@1", "R@10")])))
    if captions and captioned:
        predicted = []
        for start in range(0, len(images), batch):
            prefixes = network.project_visual_prefix(images[start : start + batch])
            beams = generate_captions(network, prefixes, tokenizer.end, beams=1)
            predicted += [tokenizer.decode(c.ids) for c in beams]
        caption_metrics = caption_scores(predicted, [list(records[i].captions) for i in captioned])
        scores |= {"BLEU@4": caption_metrics["BLEU@4"], "CIDEr": caption_metrics["CIDEr"]}
        parts.append(caption_metrics["CIDEr"])
    scores["score"] = float(np.mean(parts))
    return scores
