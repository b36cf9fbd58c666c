"""Self-Retrieval (arXiv 2403.00801): one LLM names the passage of a question, judges it and answers.

    retrieve_loss   -log P(title, passage | sentence or question): memorising and retrieving
    ask_loss        -log P(question | passage): what ranks passages by how well they explain the question
    assess_loss     -log P(answer | passage, question), the answer of a foreign question being the rejection
    embed_loss      symmetric InfoNCE of questions and passages, at [EMB]

Each but the last is the mean over its own tokens. A passage is read once for everything that is asked of it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgem.distributed.world import SINGLE_PROCESS, World
from mmgem.models.network import MMGEMNetwork
from mmgem.models.packing import PackedOutput, Segment
from mmgem.self_retrieval.batches import SelfRetrievalBatch
from mmgem.self_retrieval.config import SelfRetrievalConfig


def retrieval_loss(
    network: MMGEMNetwork,
    batch: SelfRetrievalBatch,
    config: SelfRetrievalConfig,
    world: World = SINGLE_PROCESS,
) -> dict[str, Tensor]:
    """Return ``{"retrieve_loss"}`` times its configured weight."""
    output = network.forward_packed([Segment(ids) for ids in batch.names], row_length=128)
    (total,) = world.all_reduce_sum(int(batch.named.sum()))
    loss = token_loss(network, output, batch.names, batch.named, total)
    return {"retrieve_loss": config.retrieve_weight * loss}


def reading_losses(
    network: MMGEMNetwork,
    batch: SelfRetrievalBatch,
    config: SelfRetrievalConfig,
    world: World = SINGLE_PROCESS,
) -> dict[str, Tensor]:
    """Return the other losses, each times its configured weight; those of weight 0 are left out."""
    losses: dict[str, Tensor] = {}
    weights = (config.ask_weight, config.assess_weight, config.embed_weight)
    if not any(weights):
        return losses
    facts = zip(batch.reads, batch.embed.tolist(), batch.parents.tolist(), strict=True)
    segments = [Segment(ids, pool=embed, parent=parent) for ids, embed, parent in facts]
    output = network.forward_packed(segments, row_length=512)
    asked, answered, queries = world.all_reduce_sum(
        int(batch.asked.sum()), int(batch.answered.sum()), len(batch.query_owner)
    )
    for name, weight, mask, total in (
        ("ask_loss", config.ask_weight, batch.asked, asked),
        ("assess_loss", config.assess_weight, batch.answered, answered),
    ):
        if weight and total:
            losses[name] = weight * token_loss(network, output, batch.reads, mask, total)
    if config.embed_weight and queries:
        losses["embed_loss"] = config.embed_weight * _embed_loss(network, output.embeddings, batch, world)
    return losses


def token_loss(
    network: MMGEMNetwork,
    output: PackedOutput,
    sequences: list[Tensor],
    mask: Tensor,
    total: float | None = None,
) -> Tensor:
    """Sum of the cross-entropies of the tokens of ``sequences``, whose packed pass gave ``output``, under
    ``mask`` ``(tokens,)``, over ``total`` of them (None: their own number); never of the first of a sequence.
    The head runs nowhere else."""
    states = output.hidden_states
    places = output.token_indices[mask]
    targets = torch.cat(sequences)[mask].to(states.device)
    logits = network.llm.logits(states[places.to(states.device) - 1]).float()
    return F.cross_entropy(logits, targets, reduction="sum") / (total or len(targets))


def _embed_loss(network: MMGEMNetwork, embeddings: Tensor, batch: SelfRetrievalBatch, world: World) -> Tensor:
    embedded = F.normalize(embeddings.float(), dim=-1)
    passages, queries = embedded.split([len(embedded) - len(batch.query_owner), len(batch.query_owner)])
    p, q = world.all_gather_sizes(len(passages)), world.all_gather_sizes(len(queries))
    first = sum(p[: world.rank])
    owner = batch.query_owner.to(embedded.device) + first
    owners = world.all_gather(owner, q)
    scale = network.logit_scale.exp()
    own = owners[None] == torch.arange(first, first + len(passages), device=owners.device)[:, None]
    asked = own.any(1)  # a passage without questions is a negative, and has no target of its own
    logits = scale * passages @ world.all_gather(queries, q).T
    p2q = own.to(logits)[asked] / own[asked].sum(1, keepdim=True)
    loss_p2q = -(p2q * logits[asked].log_softmax(1)).sum() / len(owners.unique())
    logits = scale * queries @ world.all_gather(passages, p).T
    return loss_p2q + F.cross_entropy(logits, owner, reduction="sum") / len(owners)
