"""Random checkpoints of two towers in the form of their own libraries, with words, and recipes over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import toys

from mmgem.config import Recipe, from_dict

FAMILIES = ("clip", "siglip", "siglip2")
SIDE, DIM = 32, {"clip": 8, "siglip": 16, "siglip2": 16}
_VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 8,
}
_TEXT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 12,
}


def tower_tokenizer(ends: bool) -> Any:
    """The toy words; ``ends``: a text begins and ends with tokens of their own, as CLIP's do."""
    from tokenizers import Tokenizer as Fast
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = [*toys.WORDS, "<pad>", "<s>", "</s>"]
    fast = Fast(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    fast.pre_tokenizer = Whitespace()
    last = len(words) - 1
    form = "<s> $A </s>" if ends else "$A </s>"
    fast.post_processor = TemplateProcessing(single=form, special_tokens=[("<s>", last - 1), ("</s>", last)])
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=fast, model_input_names=["input_ids"], **tokens)


def checkpoint(folder: Path, family: str, seed: int = 0) -> Any:
    """Write a random checkpoint as transformers does; returns its model."""
    import transformers

    torch.manual_seed(seed)
    hf = tower_tokenizer(family == "clip")
    text = _TEXT | {"vocab_size": len(hf)}
    if family == "clip":
        text |= {"eos_token_id": hf.eos_token_id, "bos_token_id": hf.bos_token_id}
        vision = _VISION | {"projection_dim": 512}  # that of the whole counts
        made: Any = transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=DIM[family])
        )
    else:
        made = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=_VISION))
    with torch.no_grad():  # the library starts some tiny
        for parameter in made.parameters():
            if parameter.ndim:
                parameter.add_(0.2 * torch.randn_like(parameter))
        made.logit_scale.fill_(4.72)
    made.eval().save_pretrained(folder)
    hf.save_pretrained(folder)
    size: dict[str, Any] = {"size": {"height": SIDE, "width": SIDE}, "resample": 3}
    if family == "clip":
        size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}, "resample": 3}
    elif family == "siglip2":
        size["resample"] = 2
    means = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    plain = size | means | {"do_center_crop": family == "clip", "do_resize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(plain))
    return made


def texts(folder: Path, count: int = 60, seed: int = 0) -> Path:
    """Write sentences of toy words, one a line."""
    rng = np.random.default_rng(seed)
    lines = {toys.sentence(rng, int(rng.integers(3, 8))) for _ in range(count)}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "texts.txt"
    path.write_text("".join(f"{line}\n" for line in sorted(lines)))
    return path


def recipe(folder: Path, source: Path, lm: Path, lines: Path, **changes: Any) -> Recipe:
    """A short adoption; ``changes`` as those of :func:`toys.recipe`."""
    plain: dict[str, Any] = {
        "data": {"texts": [str(lines)]},
        "preprocessing": {"lowercase": True},
        "init": {"encoder": str(source), "llm": str(lm)},
        "model": {"encoder": {"kind": "clip"}, "connector": {"kind": "unit_mlp"}},
        "optim": {"warmup_steps": 2, "lr_llm": 3e-3, "lr_heads": 1e-2},
        "text_distillation": {"batch_size": 16},
        "train": {
            "out": str(folder / "run"),
            "steps": 4,
            "log_every": 1,
            "checkpoint_every": 3,
            "threads": 1,
        },
    }
    toys.change(plain, changes)
    return from_dict(Recipe, plain)
