"""Cached, batched decoding against a beam search without a cache, written for clarity."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import toys
from torch import Tensor

from mmgem.inference.captioning import Caption, caption_candidates, choose_captions, generate_captions
from mmgem.models.network import MMGEMNetwork

END = 0


def confident(llm: str = "llama", seed: int = 0, ends: float = 0.0) -> MMGEMNetwork:
    """A network whose next-token distributions are peaked; ``ends`` is added to the end token's logit."""
    network = toys.network(llm, seed=seed, visual_tokens=2)
    # By name: which random numbers a weight gets when it is made depends on the release of transformers.
    draws = torch.Generator().manual_seed(seed)
    for _, weight in sorted(network.llm.named_parameters()):
        if weight.ndim >= 2:
            weight.data.copy_(0.1 * torch.randn(weight.shape, generator=draws))
    head = network.llm.lm.get_output_embeddings()
    plain = head.forward
    bias = torch.zeros(len(toys.WORDS))
    bias[END] = ends
    head.forward = lambda x: 3 * F.layer_norm(plain(x), bias.shape) + bias  # type: ignore[method-assign]
    return network


def next_log_probs(network: MMGEMNetwork, prefix: Tensor, ids: list[int]) -> Tensor:
    """log P of the token after ``ids``, everything computed anew by the library's own model."""
    tokens = network.llm.embed(torch.tensor(ids, dtype=torch.long))
    inputs = torch.cat([prefix, network.cap_token[None], tokens])[None]
    states = network.llm.lm.base_model(inputs_embeds=inputs).last_hidden_state
    return network.llm.logits(states[0, -1]).log_softmax(-1)


def repeats(ids: list[int], ngram: int) -> bool:
    """Whether the last ``ngram`` tokens came before."""
    if not ngram:
        return False
    runs = [ids[i : i + ngram] for i in range(len(ids) - ngram + 1)]
    return bool(runs) and runs[-1] in runs[:-1]


def slow_beam(
    network: MMGEMNetwork, prefix: Tensor, beams: int, max_tokens: int, alpha: float, ngram: int
) -> tuple[list[int], float]:
    """Beam search in lists: every hypothesis by itself, to the greatest length, no early stop."""
    live: list[tuple[float, list[int]]] = [(0.0, [])]
    finished: list[tuple[float, float, list[int]]] = []
    for _ in range(max_tokens):
        options = []
        for log_p, ids in live:
            values = next_log_probs(network, prefix, ids)
            options += [
                (log_p + float(v), [*ids, token])
                for token, v in enumerate(values)
                if not repeats([*ids, token], ngram)
            ]
        options.sort(key=lambda option: -option[0])
        finished += [
            (log_p / len(ids) ** alpha, log_p, ids[:-1]) for log_p, ids in options[:beams] if ids[-1] == END
        ]
        live = [option for option in options if option[1][-1] != END][:beams]
    if finished:
        _, log_p, ids = max(finished, key=lambda option: option[0])
        return ids, log_p
    return live[0][1], live[0][0]


def greedy(network: MMGEMNetwork, prefix: Tensor, max_tokens: int) -> list[int]:
    ids: list[int] = []
    while len(ids) < max_tokens:
        token = int(next_log_probs(network, prefix, ids).argmax())
        if token == END:
            break
        ids.append(token)
    return ids


def forced_log_prob(network: MMGEMNetwork, prefix: Tensor, caption: Caption, ended: bool) -> float:
    """Summed log P of a caption (and of the end, if it ended), teacher-forced."""
    total = 0.0
    for i, token in enumerate([*caption.ids, END] if ended else caption.ids):
        total += float(next_log_probs(network, prefix, caption.ids[:i])[token])
    return total


@pytest.mark.parametrize("llm", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize(
    ("beams", "alpha", "ngram"), [(2, 0.7, 0), (3, 1.0, 3), (4, 0.0, 0), (1, 0.7, 1), (3, 0.7, 2)]
)
@torch.inference_mode()
def test_equals_slow_beam_search(llm: str, beams: int, alpha: float, ngram: int) -> None:
    network = confident(llm, seed=2, ends=3.0)
    torch.manual_seed(2)
    prefixes = torch.randn(5, 2, 16) * 2
    fast = generate_captions(network, prefixes, END, beams, 10, alpha, ngram)
    for prefix, caption in zip(prefixes, fast, strict=True):
        ids, log_p = slow_beam(network, prefix, beams, 10, alpha, ngram)
        assert caption.ids == ids
        assert caption.log_prob == pytest.approx(log_p, abs=1e-4)


@pytest.mark.parametrize("llm", ["llama", "gpt2", "gemma2"])
@torch.inference_mode()
def test_one_beam_is_greedy(llm: str) -> None:
    network = confident(llm, ends=5.0)
    prefixes = torch.randn(6, 2, 16) * 2
    captions = generate_captions(network, prefixes, END, 1, 10, no_repeat_ngram_size=0)
    assert [c.ids for c in captions] == [greedy(network, prefix, 10) for prefix in prefixes]
    assert len({len(c.ids) for c in captions}) > 1


@pytest.mark.parametrize("beams", [1, 3])
@torch.inference_mode()
def test_batched_equals_one_by_one(beams: int) -> None:
    network = confident(ends=3.0)
    prefixes = torch.randn(7, 2, 16) * 2
    together = generate_captions(network, prefixes, END, beams, 12)
    for b, caption in enumerate(together):
        alone = generate_captions(network, prefixes[b : b + 1], END, beams, 12)[0]
        assert alone.ids == caption.ids
        assert alone.log_prob == pytest.approx(caption.log_prob, abs=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
@torch.inference_mode()
def test_scores_are_teacher_forced_log_probs(beams: int) -> None:
    network = confident(ends=3.0)
    prefixes = torch.randn(8, 2, 16) * 2
    captions = generate_captions(network, prefixes, END, beams, 6)
    ended = []
    for prefix, caption in zip(prefixes, captions, strict=True):
        assert END not in caption.ids
        ended.append(len(caption.ids) < 6)
        expected = forced_log_prob(network, prefix, caption, ended[-1])
        assert caption.log_prob == pytest.approx(expected, abs=1e-4)
    assert len(set(ended)) == 2


@pytest.mark.parametrize("beams", [1, 4])
@torch.inference_mode()
def test_captions_that_do_not_end_are_cut(beams: int) -> None:
    network = confident(ends=-100.0)
    prefixes = torch.randn(3, 2, 16)
    for length in (1, 5):
        captions = generate_captions(network, prefixes, END, beams, length)
        assert [len(c.ids) for c in captions] == [length] * 3
        for prefix, caption in zip(prefixes, captions, strict=True):
            assert caption.log_prob == pytest.approx(
                forced_log_prob(network, prefix, caption, ended=False), abs=1e-4
            )


@pytest.mark.parametrize("beams", [1, 4])
@torch.inference_mode()
def test_an_immediate_end_is_an_empty_caption(beams: int) -> None:
    network = confident(ends=100.0)
    captions = generate_captions(network, torch.randn(2, 2, 16), END, beams, 5)
    assert [c.ids for c in captions] == [[], []]
    assert all(c.log_prob == pytest.approx(0, abs=1e-4) for c in captions)


@torch.inference_mode()
def test_more_beams_do_not_lose_probability() -> None:
    # Without length normalisation the best of more hypotheses is at least as likely, nearly always.
    network = confident(ends=3.0)
    prefixes = torch.randn(12, 2, 16) * 2
    mean = [
        sum(c.log_prob for c in generate_captions(network, prefixes, END, beams, 10, length_penalty=0.0)) / 12
        for beams in (1, 4)
    ]
    assert mean[1] >= mean[0] - 1e-4


@torch.inference_mode()
def test_candidates_do_not_depend_on_their_neighbours() -> None:
    network = confident("llama", seed=2, ends=3.0)
    torch.manual_seed(2)
    prefixes = torch.randn(5, 2, 16) * 2
    together = caption_candidates(network, prefixes, END, 3, 12)
    assert max(map(len, together)) > 3
    for b, found in enumerate(together):
        assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)
        (alone,) = caption_candidates(network, prefixes[b : b + 1], END, 3, 12)
        assert [c.ids for c in found] == [c.ids for c in alone]
        for c in found:
            ended = c.score > -torch.inf
            assert ended or len(found) == 1
            expected = forced_log_prob(network, prefixes[b], c, ended)
            assert c.log_prob == pytest.approx(expected, abs=1e-4)
            assert not ended or c.score == pytest.approx(c.log_prob / (len(c.ids) + 1) ** 0.7, abs=1e-5)


@torch.inference_mode()
def test_the_model_chooses_by_its_own_embedding() -> None:
    network = confident("llama", seed=2, ends=3.0)
    torch.manual_seed(2)
    found = caption_candidates(network, torch.randn(5, 2, 16) * 2, END, 4, 12)
    visual = torch.randn(5, network.config.dim)
    assert choose_captions(network, visual, found, 0.0) == [own[0] for own in found]
    for weight in (0.05, 1.0, 100.0):
        chosen = choose_captions(network, visual, found, weight, most=6)
        for image, own, best in zip(visual, found, chosen, strict=True):
            scores = []
            for c in own[:6]:
                text = network.encode_text([torch.tensor(c.ids)])[0] if c.ids else None
                cosine = -torch.inf if text is None else torch.cosine_similarity(image, text, dim=0)
                scores.append(c.score + weight * float(network.logit_scale.exp() * cosine))
            assert scores[own.index(best)] == pytest.approx(max(scores), abs=1e-4)
