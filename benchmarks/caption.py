"""Captions from a batch on the KV cache against one image at a time without a cache.

    python benchmarks/caption.py [--model FOLDER | --random] [--images 32] [--beams 3] [--quick]

The same network, prefixes and beam search; both sides must give the same tokens, which is asserted. The
plain side runs the whole prefix and text again for each new token. The encoder is not part of it. --random:
six layers of SmolLM2's size with random weights, sharpened so that no two tokens tie.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from smollm2 import SMOLLM2
from torch import Tensor

from mmgem.checkpoints.model_folder import load_model
from mmgem.checkpoints.resolve import resolve
from mmgem.config import EncoderConfig, LLMConfig, ModelConfig
from mmgem.inference.caption_options import CAPTION_DEFAULTS
from mmgem.inference.captioning import generate_captions
from mmgem.models.network import MMGEMNetwork

ALPHA = CAPTION_DEFAULTS.length_penalty


@torch.inference_mode()
def plain(network: MMGEMNetwork, prefix: Tensor, end: int, beams: int, max_tokens: int) -> list[int]:
    """Beam search for one image; every step computes everything again."""
    tokens, live = torch.empty(1, 0, dtype=torch.long), torch.zeros(1)
    best, best_score = list[int](), float("-inf")
    for step in range(max_tokens):
        count = len(tokens)
        inputs = torch.cat(
            [
                prefix.expand(count, -1, -1),
                network.cap_token.expand(count, 1, -1),
                network.llm.embed(tokens),
            ],
            1,
        )
        positions = torch.arange(inputs.shape[1]).expand(count, -1)
        log_probs = network.llm.logits(network.llm(inputs, positions)[:, -1]).log_softmax(-1)
        scores = (live[:, None] + log_probs).flatten()
        top, at = scores.topk(2 * beams)
        origin, token = at // log_probs.shape[1], at % log_probs.shape[1]
        for i in range(beams):
            score = top[i].item() / (step + 1) ** ALPHA
            if token[i] == end and score > best_score:
                best, best_score = tokens[origin[i]].tolist(), score
        keep = (token != end).nonzero()[:beams, 0]
        tokens = torch.cat([tokens[origin[keep]], token[keep, None]], 1)
        live = top[keep]
        if best_score > float("-inf") and (beams == 1 or best_score >= live[0].item() / max_tokens**ALPHA):
            break
    return best if best_score > float("-inf") else tokens[0].tolist()


def make(options: argparse.Namespace) -> tuple[MMGEMNetwork, int]:
    """The network of the command line and its end token."""
    if options.model:
        network, tokenizer = load_model(resolve(options.model))
        return network, tokenizer.end
    torch.manual_seed(0)
    config = dict(SMOLLM2)
    if options.quick:
        config |= {"vocab_size": 500, "hidden_size": 72, "intermediate_size": 96, "num_hidden_layers": 2}
    network = MMGEMNetwork(
        ModelConfig(
            encoder=EncoderConfig(config={"size": 32}), llm=LLMConfig(config), dim=64, visual_tokens=4
        )
    ).eval()
    with torch.no_grad():
        network.llm.lm.get_submodule("model.norm").weight.mul_(20)
        network.visual_connector.weight.mul_(100)
    return network, 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--model", help="a model folder or a packaged name")
    group.add_argument("--random", action="store_true", help="random weights (the default)")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to see that it runs")
    options = parser.parse_args()
    if options.quick:
        options.images, options.repeats = min(options.images, 4), 1
    if options.threads:
        torch.set_num_threads(options.threads)
    network, end = make(options)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        maps = torch.randn(options.images, 7, 7, network.encoder.channels, generator=generator).abs()
        prefixes = network.project_visual_prefix(network.encode_image(maps))
    slow, fast = [], []
    for _ in range(options.repeats):
        began = time.perf_counter()
        alone = [plain(network, p[None], end, options.beams, options.max_tokens) for p in prefixes]
        slow.append(time.perf_counter() - began)
        began = time.perf_counter()
        ours = generate_captions(network, prefixes, end, options.beams, options.max_tokens, ALPHA)
        fast.append(time.perf_counter() - began)
        assert [c.ids for c in ours] == alone, "the two sides say different things"
    lengths = [len(ids) for ids in alone]
    print(f"{options.images} captions of {min(lengths)} to {max(lengths)} tokens, {options.beams} beams,")
    print(f"{torch.get_num_threads()} threads; median of {options.repeats} rounds; identical tokens\n")
    for name, taken in (("plain: no cache, one by one", slow), ("mmgem: cached, batched", fast)):
        seconds = statistics.median(taken)
        rate, ratio = options.images / seconds, statistics.median(slow) / seconds
        print(f"{name:28} {seconds * 1e3:9.1f} ms  {rate:8.1f} captions/s  {ratio:6.2f}x")


if __name__ == "__main__":
    main()
