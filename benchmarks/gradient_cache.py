"""Gradient caching: the peak memory of a large contrastive batch in chunks beside a small one without.

    python benchmarks/gradient_cache.py [--quick]

Each line is a process of its own that takes one joint step (forward, backward, AdamW) of the default model's
shape with random weights: EfficientNet's features of 7 x 7 x 1,280, six blocks of SmolLM2's width, its 49,152
tokens, texts of 4 to 29 tokens. Memory is the process's peak less what it held before the step.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

from smollm2 import SMOLLM2


def step(batch: int, chunk: int, quick: bool) -> dict[str, float]:
    import torch

    from mmgem.config import LLMConfig, ModelConfig, Recipe, TrainConfig
    from mmgem.data.batches import Batch
    from mmgem.models.network import MMGEMNetwork
    from mmgem.tasks.base import tasks_of
    from mmgem.train.engine import Engine
    from mmgem.train.step import accumulate_gradients

    torch.manual_seed(0)
    lm = SMOLLM2 | ({"vocab_size": 4096, "hidden_size": 288, "num_hidden_layers": 2} if quick else {})
    network = MMGEMNetwork(ModelConfig(llm=LLMConfig(lm), dropout=0.2)).train()
    for p in network.encoder.parameters():
        p.requires_grad_(False)
    config = TrainConfig(Path("run"), grad_cache_chunk_size=chunk)
    engine = Engine(network, config)
    (task,) = tasks_of(Recipe(config))
    optimizer = torch.optim.AdamW(engine.trainable_parameters(), lr=1e-4, fused=True)
    for p in engine.trainable_parameters():  # gradients and moments are there at every step but the first
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(4, 30, (batch,), generator=generator).tolist()
    texts = [torch.randint(1, lm["vocab_size"], (n,), generator=generator) for n in lengths]
    end, owner = torch.tensor([0]), torch.arange(batch)
    made = Batch(
        features=torch.rand(batch, 7, 7, 1280, generator=generator),
        texts=texts,
        text_owner=owner,
        captions=texts,
        caption_owner=owner,
        caption_targets=torch.cat([t for ids in texts for t in (ids, end)]),
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    losses = accumulate_gradients(engine, [(task, made)], chunk, lambda n: n, "step 0")
    seconds = time.monotonic() - started
    optimizer.step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"MB": (peak - before) / 1024, "pairs/s": batch / seconds, **losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a toy model")
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(step(*options.one, options.quick)))
        return
    found = {}
    print(f"{'batch':>6} {'chunk':>6} {'memory of the step':>19} {'pairs/s':>8}")
    for batch, chunk in ((128, 0), (1024, 128), (1024, 64), (1024, 0)):
        command = [sys.executable, __file__, "--one", str(batch), str(chunk)]
        done = subprocess.run(
            [*command, *(["--quick"] if options.quick else [])], capture_output=True, text=True, check=True
        )
        told = found[batch, chunk] = json.loads(done.stdout)
        print(f"{batch:6} {chunk or '-':>6} {told['MB']:16.0f} MB {told['pairs/s']:8.1f}", flush=True)
    ratio = found[1024, 128]["MB"] / found[128, 0]["MB"]
    print(f"1,024 in chunks of 128 takes {ratio:.2f}x the memory of a batch of 128,")
    print(f"a batch of 1,024 without chunks {found[1024, 0]['MB'] / found[128, 0]['MB']:.2f}x")


if __name__ == "__main__":
    main()
