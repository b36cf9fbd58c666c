"""``mmgem adopt`` on random weights of the exact shapes of the commonest checkpoints; no hub is asked.

    python benchmarks/adopt_shapes.py [NAME ...] [--steps 2]

Of each: written as its own library writes it, adopted by the command line with a toy LLM and toy words, then
the embeddings of two photos compared with transformers'. Prints a line each: seconds, greatest memory of the
process so far and greatest difference; the exit code is 1 if one is above 1e-5.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import adopt_toys
import numpy as np
import torch
import torch.nn.functional as F
import toys
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from mmgem import MMGEM
from mmgem.cli.main import main as mmgem

SIDE = 224
_OPEN_CLIP = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": SIDE, "layers": 12, "width": 768, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}
_PARTS = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
_OTHERS = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
}
_NORMS = {"pre_layrnorm": "ln_pre", "post_layernorm": "ln_post", "final_layer_norm": "ln_final"}


def clip(**options: Any) -> Any:
    """ViT-B/32 with a text tower of 12 layers: the defaults of transformers."""
    import transformers

    parts = {"hidden_act": options["act"]} if options else {}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=parts, vision_config=parts))


def siglip(vocabulary: int) -> Any:
    """SigLIP base, 16 pixels a patch: the defaults of transformers."""
    import transformers

    config = transformers.SiglipConfig(text_config={"vocab_size": vocabulary}, vision_config={})
    return transformers.SiglipModel(config)


def as_open_clip(model: Any) -> Iterator[tuple[str, Tensor]]:
    """The weights of transformers' CLIPModel by open_clip's names."""
    state = model.state_dict()
    for name, value in state.items():
        tower, _, rest = name.partition(".")
        before = "visual." if tower == "vision_model" else ""
        if rest.startswith("encoder.layers."):
            number, _, part = rest.removeprefix("encoder.layers.").partition(".")
            inside, (module, _, kind) = f"{before}transformer.resblocks.{number}", part.rpartition(".")
            if part.startswith("self_attn.q_proj"):
                three = [state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
                yield f"{inside}.attn.in_proj_{kind}", torch.cat(three)
            elif module == "self_attn.out_proj":
                yield f"{inside}.attn.out_proj.{kind}", value
            elif module in _PARTS:
                yield f"{inside}.{_PARTS[module]}.{kind}", value
        elif rest in _OTHERS:
            yield before + _OTHERS[rest], value
        elif rest.partition(".")[0] in _NORMS:
            module, _, kind = rest.partition(".")
            yield f"{before}{_NORMS[module]}.{kind}", value
        elif name in ("visual_projection.weight", "text_projection.weight"):
            yield ("visual.proj" if name[0] == "v" else "text_projection"), value.T.contiguous()
        elif name == "logit_scale":
            yield name, value


MODELS = {
    "openai/clip-vit-base-patch32": lambda: clip(),
    "google/siglip-base-patch16-224": lambda: siglip(32_000),
    "google/siglip2-base-patch16-224": lambda: siglip(256_000),
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": lambda: clip(act="gelu"),
}


def write(folder: Path, name: str) -> Any:
    """Write the checkpoint ``name`` with random weights; returns its model."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    open_clip, crops = name.startswith("laion"), "siglip" not in name
    folder.mkdir(parents=True)
    if open_clip:
        weights = {key: value.contiguous() for key, value in as_open_clip(model)}
        save_file(weights, str(folder / "open_clip_model.safetensors"))
        prepared = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
        (folder / "open_clip_config.json").write_text(
            json.dumps({"model_cfg": _OPEN_CLIP, "preprocess_cfg": prepared})
        )
    else:
        model.save_pretrained(folder)
        plain = {"size": {"height": SIDE, "width": SIDE}, "do_center_crop": False, "resample": 3}
        plain |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        (folder / "preprocessor_config.json").write_text(json.dumps(plain))
    adopt_toys.tower_tokenizer(crops).save_pretrained(folder)
    return model


def difference(model: Any, adopted: MMGEM) -> float:
    """The greatest difference of unit embeddings of two photos of noise."""
    photos = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
    pixels = torch.from_numpy(photos).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        told = F.normalize(model.get_image_features(pixels).pooler_output, dim=-1).numpy()
    return float(np.abs(adopted.embed_images([Image.fromarray(photo) for photo in photos]) - told).max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", default=list(MODELS))
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    wrong = 0
    for name in options.names:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            os.environ["MMGEM_CACHE"] = str(folder / "cache")
            model, lm = write(folder / name, name), toys.base_models(folder / "llm")[0]
            texts, run = adopt_toys.texts(folder / "texts"), folder / "run"
            began = time.monotonic()
            argv = ["adopt", str(folder / name), "--llm", str(lm), "--texts", str(texts), "--out", str(run)]
            argv += ["--steps", str(options.steps), "text_distillation.batch_size=16"]
            if mmgem([*argv, "text_distillation.sampled_softmax=0"]):
                return 1
            seconds = time.monotonic() - began
            apart = difference(model, MMGEM.from_pretrained(run / "model"))
        gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"{name:40} {seconds:6.1f} s {gb:5.1f} GB {apart:.1e}", flush=True)
        wrong += apart > 1e-5
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
