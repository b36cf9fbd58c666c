"""A recipe's step gone through without data: the trainer's own code, on the planned number of ranks.

The optimiser's tensors are not made but reckoned: two of the size of what trains, one more for the average.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mmgem.config import Recipe
from mmgem.data.batches import Batch
from mmgem.distributed.world import World
from mmgem.models.network import MMGEMNetwork
from mmgem.plan.batch import FakeTensorFactory, imagined_batch
from mmgem.plan.lengths import Captions
from mmgem.plan.memory import MemoryTracker
from mmgem.self_retrieval.batches import CorpusBatch
from mmgem.tasks.image_text.contrastive import contrastive_terms
from mmgem.train.engine import checkpoint_activations, set_precision
from mmgem.train.gradients import Step, Terms, chunks, corpus_parts, whole_loss
from mmgem.train.optim import trainable


@dataclass(frozen=True)
class FakeWorld(World):
    """Ranks that all have what this one has, of which only this one is there."""

    def all_reduce_sum(self, *counts: float) -> list[float]:
        """As if every rank had counted the same."""
        return [count * self.size for count in counts]

    def all_gather_sizes(self, count: int) -> list[int]:
        """As if every rank had ``count``."""
        return [count] * self.size

    def all_gather(self, rows: Tensor, lengths: list[int]) -> Tensor:
        """This rank's rows in the place of everyone's."""
        return torch.cat([rows] * self.size) if self.size > 1 else rows


@dataclass
class DryRun:
    """``trained``: parameters that train, by group; ``pairs`` and ``images`` (boxes too) of this rank's step;
    ``memory``: bytes of a device by kind, when they are most; ``work``: operators of a step, see
    :class:`MemoryTracker`."""

    trained: dict[str, int]
    pairs: int
    images: int
    memory: Counter[str]
    work: Counter[tuple[torch.dtype, int, int]]


def dry_run(
    recipe: Recipe,
    network: MMGEMNetwork,
    device: str,
    count: int,
    captions: Captions | None,
    corpus: tuple[CorpusBatch, float] | None,
) -> DryRun:
    """Go through one step of ``recipe`` with ``network`` (on the meta device; it is changed), as the last of
    ``count`` ranks on a kind of ``device``.

    ``captions``: of the images that train, if any; ``corpus``: a step's batch of the corpus, and how much of
    its work the mean step has.
    """
    ranks = FakeWorld(count - 1, count)
    sharded = count > 1 and recipe.train.strategy == "fsdp"
    groups = trainable(network, recipe.optim, recipe.data.cached)
    trained = {g: sum(network.get_parameter(n).numel() for n in names) for g, names in groups.items()}
    if recipe.train.checkpoint_activations:
        checkpoint_activations(network)
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        network.to_empty(device="cpu")
    set_precision(network, recipe.train.precision, device)
    network.train()

    def fake_tensor(*shape: int) -> Tensor:
        with fake:
            return torch.empty(shape)

    batch = None
    if captions is not None:
        batch = imagined_batch(recipe, network, captions, count, fake_tensor)
    ledger = MemoryTracker(_widths(network, recipe, batch))
    _label(ledger, network, batch)
    _hold_gradients(ledger, network, count > 1, sharded)
    step = Step(network, recipe.objective, ranks)
    pairs = 0
    with torch.random.fork_rng(), ledger:
        if batch is not None:
            pairs += len(batch.texts)
            _images(step, batch, recipe.train.grad_cache_chunk_size, ledger, fake_tensor, sharded)
        if corpus is not None:
            texts, ledger.weight = corpus
            pairs += len(texts.names)
            for what in corpus_parts(texts, recipe.objective):
                _backward(step(what, texts))
    memory = _with_states(recipe, network, ledger.peak, device, count)
    return DryRun(trained, pairs, 0 if batch is None else _items(batch), memory, ledger.work)


def _items(batch: Batch) -> int:
    """Images and boxes of ``batch``."""
    assert batch.photos is not None
    return len(batch.photos)


def _widths(network: MMGEMNetwork, recipe: Recipe, batch: Batch | None) -> set[int]:
    """How many words logits are of."""
    full = recipe.corpus.passages is not None or not recipe.objective.vocabulary_sample
    widths = {network.llm.vocabulary} if full else set()
    if batch is not None and recipe.objective.vocabulary_sample:
        assert batch.vocabulary is not None
        widths.add(len(batch.vocabulary) + recipe.objective.vocabulary_sample)
    return widths


def _label(ledger: MemoryTracker, network: MMGEMNetwork, batch: Batch | None) -> None:
    """Tell the ledger what is whose."""
    for tensor in (*network.parameters(), *network.buffers()):
        ledger.hold(tensor, "weights")
    for tensor in vars(batch).values() if batch is not None else ():
        if isinstance(tensor, Tensor):
            ledger.hold(tensor, "maps" if tensor.ndim == 4 and tensor.shape[1] != 3 else "batch")
    ledger.label(network.llm, "forward", "llm")
    ledger.label(network.encoder, "frozen_stem", "encoder")
    ledger.label(network.encoder, "trainable_head", "encoder", result="maps")


def _hold_gradients(ledger: MemoryTracker, network: MMGEMNetwork, several: bool, sharded: bool) -> None:
    """Tell the ledger which memory becomes that of gradients: on several ranks DDP holds all of them at all
    times; FSDP passes them on at once."""
    for p in network.parameters():
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(lambda p: _held(ledger, p, sharded))
    if several and not sharded:
        _give_gradients(ledger, network, sharded)


def _give_gradients(ledger: MemoryTracker, network: MMGEMNetwork, sharded: bool) -> None:
    """Let everything that trains have a gradient."""
    for p in network.parameters():
        if p.requires_grad and p.grad is None:
            p.grad = torch.zeros_like(p)
            _held(ledger, p, sharded)


def _held(ledger: MemoryTracker, p: Tensor, sharded: bool) -> None:
    assert p.grad is not None
    if sharded:
        ledger.forget(p.grad)
    else:
        ledger.hold(p.grad, "gradients")


def _images(
    step: Step, batch: Batch, chunk: int, ledger: MemoryTracker, fake_tensor: FakeTensorFactory, sharded: bool
) -> None:
    """A step on images. Of pieces of a batch that are alike, one is gone through for all of them."""
    if not chunk:
        _backward(step("images", batch))
        return
    pieces = list(chunks(batch, chunk))
    alike: dict[bool, list[Batch]] = {}
    for piece in pieces:
        alike.setdefault(piece.boxes is None, []).append(piece)
    shares = [(own[0], sum(len(p.texts) for p in own) / len(own[0].texts)) for own in alike.values()]
    dim = step.network.config.dim
    images, texts = fake_tensor(_items(batch), dim), fake_tensor(len(batch.texts), dim)
    slopes: tuple[Tensor, ...] = images, texts
    if step.config.name != "captioning":
        with torch.no_grad():
            for piece, ledger.weight in shares:
                step("embed", piece)
        ledger.weight = 1.0
        wanted = images.requires_grad_(), texts.requires_grad_()
        terms = contrastive_terms(step.network, *wanted, batch, step.config, step.world)
        slopes = torch.autograd.grad(terms["contrastive_loss"], wanted)
    total = 0 if step.config.name == "contrastive" else len(batch.caption_targets)
    _give_gradients(ledger, step.network, sharded)  # from the second piece on they are there
    for piece, ledger.weight in shares:
        items, words = len(piece.text_owner.unique()), len(piece.texts)
        mine = (None, None) if step.config.name == "captioning" else (slopes[0][:items], slopes[1][:words])
        _backward(step("again", piece, *mine, total))


def _backward(terms: Terms) -> None:
    loss = whole_loss(terms)
    if loss is not None:
        loss.backward()


def _with_states(
    recipe: Recipe, network: MMGEMNetwork, peak: Counter[str], device: str, count: int
) -> Counter[str]:
    """Bytes by kind with what lies beside a step: optimiser, average, and on a CPU the copy of all that
    trains, from which a checkpoint is written while steps go on."""
    every = _bytes(network.parameters())
    trained = _bytes(p for p in network.parameters() if p.requires_grad)
    ranks = count if recipe.train.strategy == "fsdp" else 1
    memory = Counter(peak)
    memory["optimizer"] = 2 * trained // ranks
    memory["average"] = trained // ranks if recipe.optim.ema_decay else 0
    if device == "cpu":
        memory["checkpoint"] = trained + 2 * trained + (trained if recipe.optim.ema_decay else 0)
    if ranks > 1:
        # Whole are: what lies outside the LLM's blocks, all the time, and two blocks, one being fetched.
        blocks = list(network.llm.blocks)
        in_block = [_bytes(b.parameters()) for b in blocks]
        gradients = [_bytes(p for p in b.parameters() if p.requires_grad) for b in blocks]
        memory["weights"] += every // ranks - sum(in_block) + 2 * max(in_block)
        memory["gradients"] = trained // ranks + trained - sum(gradients) + 2 * max(gradients)
    return memory


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)
