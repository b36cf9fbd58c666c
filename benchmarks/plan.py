"""What ``mmgem plan`` predicts beside what training then takes: parameters, operations, memory.

    python benchmarks/plan.py [--batch 96] [--quick]

Three recipes of the default model's size (EfficientNet-Lite0, six blocks of SmolLM2's shape, random weights)
on made-up data: photos with cached features; stage 2, with boxes of larger photos and long texts; a corpus
(Self-Retrieval). Each is planned, then trained for a few steps in processes of its own: one trains as ``mmgem
train`` does and tells its peak resident memory less that before training; one counts operations with
``torch.utils.flop_counter``, to which attention on a CPU and the gradients of grouped convolutions are
explained (it counts none of the first, and the latter as if they were full).

The plan is of tensors in use; what is measured has also what C's allocator keeps between them. A checkpoint
is written while steps go on, as in a long run.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import re
import subprocess
import sys
import tempfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from smollm2 import SMOLLM2

WORDS = [f"w{n}" for n in range(6000)]


def make_bases(folder: Path, **narrower: int) -> None:
    """Base weights with a word tokenizer, as a user would have them; ``narrower``: fields of the LLM."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    from mmgem.encoders.efficientnet import EfficientNetLite

    torch.manual_seed(0)
    config = AutoConfig.for_model(**SMOLLM2 | narrower)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "llm")
    names = ["<end>", "<unk>", *WORDS]
    fast = Tokenizer(WordLevel({name: n for n, name in enumerate(names)}, unk_token="<unk>"))
    fast.pre_tokenizer = Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<end>", unk_token="<unk>")
    made.save_pretrained(folder / "llm")
    (folder / "encoder").mkdir()
    save_file(EfficientNetLite().state_dict(), str(folder / "encoder" / "model.safetensors"))
    (folder / "encoder" / "config.json").write_text('{"kind": "efficientnet_lite0"}')


def said(rng: np.random.Generator, least: int, most: int) -> str:
    return " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), int(rng.integers(least, most))))


def make_data(folder: Path, count: int) -> None:
    """Photos with captions and boxes, passages with questions."""
    from PIL import Image

    rng = np.random.default_rng(0)
    rows = []
    for n in range(count):
        noise = rng.integers(0, 255, (12, 16, 3)).astype(np.uint8)
        Image.fromarray(noise).resize((640, 480)).save(folder / f"{n}.jpg")
        boxes = [[10.0 * k, 8.0 * k, 200.0 + 60 * k, 300.0] for k in range(1, 2 + n % 4)]
        regions = [{"box": box, "captions": [said(rng, 3, 9)]} for box in boxes]
        captions = [said(rng, 6, 18) for _ in range(5)]
        rows.append({"image": f"{n}.jpg", "captions": captions, "regions": regions})
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [". ".join(said(rng, 15, 30) for _ in range(5)) + "." for _ in range(count // 2)]
    passages = [{"id": str(n), "title": f"w{n // 4}", "text": text} for n, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in passages))
    queries = [
        {"id": f"{n}-{k}", "query": said(rng, 8, 16), "positives": [str(n)], "answers": [said(rng, 1, 4)]}
        for n in range(count // 2)
        for k in range(3)
    ]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))


def recipes(folder: Path, batch: int) -> dict[str, dict[str, Any]]:
    """Recipes as tables."""
    images: dict[str, Any] = {
        "data": {
            "train": str(folder / "captions.jsonl"), "split": "", "dev_split": "", "cached_augmentations": 2,
            "cache": str(folder / "features"),
        },
        "init": {"llm": str(folder / "llm"), "encoder": str(folder / "encoder")},
        "model": {"dim": 512, "visual_tokens": 4, "dropout": 0.1, "encoder": {"freeze_until": 11}},
        "image_text": {"caption": {"sampled_softmax": 2048}},
        "optim": {"lr_encoder": 1e-4, "ema_decay": 0.998, "warmup_steps": 1},
        "train": {"device": "cpu", "batch_size": batch, "epochs": 2, "checkpoint_every": 2, "log_every": 1},
    }  # fmt: skip
    stage_2 = {
        "data": images["data"] | {"region_share": 0.4, "region_size": 448, "joined_caption_prob": 0.2},
        "preprocessing": {"max_text_tokens": 128},
        "image_text": {"contrastive": {"mask_false_negatives": True}},
    }
    corpus = {
        "self_retrieval": {
            "passages": str(folder / "corpus.jsonl"), "queries": [str(folder / "queries.jsonl")],
            "batch_size": batch,
        },
        "model": {"dim": 512, "encoder": {"kind": "none"}},
        "preprocessing": {"max_text_tokens": 1024, "text_prefix": " "},
        "optim": {"ema_decay": 0.998, "warmup_steps": 1},
        "train": images["train"] | {"epochs": 0.5},
    }  # fmt: skip
    made = {
        "joint": images,
        "stage 2": images | stage_2,
        "corpus": {"init": images["init"]} | corpus,
    }
    for name, table in made.items():
        table["train"] = table["train"] | {"out": str(folder / "runs" / name)}
    return made


def trained(recipe: Any, warm: Any) -> dict[str, float]:
    """Train to the end; the peak of the resident memory. ``warm``: a recipe to train before, so that
    what the libraries hold for themselves is not the run's."""
    from mmgem.train.loop import train

    train(warm)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    before = resident("RSS")
    train(recipe)
    return {"bytes": resident("HWM") - before}


def resident(which: str) -> float:
    """Bytes of this process in memory now (``RSS``) or at most (``HWM``), as Linux counts them."""
    found = re.search(rf"Vm{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024.0 * int(found[1])


def counted(recipe: Any, _warm: Any) -> dict[str, float]:
    """Parameters that train, and operations of the mean of a few steps."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    from mmgem.train.loop import prepare, train_step

    def convolution(gradient: Any, _inputs: Any, weight: Any, *more: Any, **_: Any) -> int:
        return sum(more[7][:2]) * 2 * prod(gradient) * prod(weight[1:])

    def attention(*shapes: Any, **_: Any) -> int:
        return sdpa_flop_count(*shapes[:3])

    def attention_backward(*shapes: Any, **_: Any) -> int:
        return sdpa_backward_flop_count(*shapes[:4])

    aten = torch.ops.aten
    mended = {
        aten.convolution_backward: convolution,
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
    }
    run, found = prepare(recipe), []
    for step in range(min(4, run.total)):
        with FlopCounterMode(display=False, custom_mapping=mended) as counter:
            train_step(run, step)
        found.append(counter.get_total_flops())
    network = run.network
    every = sum(p.numel() for p in network.parameters())
    learned = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return {"operations": float(np.mean(found)), "parameters": every, "trained": learned}


def planned(recipe: Any, _warm: Any) -> dict[str, float]:
    """The same numbers before."""
    from mmgem.plan import plan

    made = plan(recipe)
    return {
        "bytes": 1e9 * made.total_memory,
        "operations": 1e12 * sum(made.operations.values()),
        "parameters": made.parameters["total"],
        "trained": sum(made.trained.values()),
    }


TASKS = {"trained": trained, "counted": counted, "planned": planned}


def ask(task: str, tables: list[dict[str, Any]]) -> dict[str, float]:
    """Do ``task`` with the recipes ``tables`` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--task", task, "--recipes", json.dumps(tables)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def compare(name: str, table: dict[str, Any], warm: dict[str, Any]) -> None:
    """Print a recipe's lines."""
    told, real = ask("planned", [table, warm]), ask("counted", [table, warm]) | ask("trained", [table, warm])
    for what in ("parameters", "trained", "operations", "bytes"):
        one, other = told[what], real[what]
        print(f"{name:8} {what:16} {one:17,.0f} {other:17,.0f} {one / other:6.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--only", help="one of the recipes")
    parser.add_argument("--quick", action="store_true", help="a narrow LLM and a batch of 16")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--recipes", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        from transformers.utils import logging

        from mmgem.config import Recipe, from_dict

        logging.disable_progress_bar()
        print(json.dumps(TASKS[options.task](*(from_dict(Recipe, table) for table in options.recipes))))
        return
    batch = 16 if options.quick else options.batch
    narrow = {"hidden_size": 144, "intermediate_size": 384, "vocab_size": 8192}
    with tempfile.TemporaryDirectory() as name:
        folder, small = Path(name, "full"), Path(name, "small")
        for place, count in ((folder, 2 * batch), (small, 8)):
            place.mkdir()
            make_data(place, count)
        make_bases(folder, **(narrow if options.quick else {}))
        make_bases(small, **narrow | {"num_hidden_layers": 1})
        warm = recipes(small, 8)
        print(f"{'':25} {'predicted':>17} {'measured':>17} {'ratio':>6}")
        for recipe, table in recipes(folder, batch).items():
            if options.only in (None, recipe):
                compare(recipe, table, warm[recipe])


if __name__ == "__main__":
    main()
