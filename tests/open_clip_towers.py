"""What open_clip's towers make of random pixels and tokens, written down once to be compared with: two random
checkpoints in its own form, and their embeddings and logits.

pip install open_clip_torch==3.3.0        (in an environment of its own)
python tests/open_clip_towers.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

RECORDED = Path(__file__).parent / "fixtures" / "open_clip_towers"
VARIANTS: dict[str, dict[str, Any]] = {
    "gelu": {},
    "quick_gelu": {"quick_gelu": True, "init_logit_bias": -3.0},
}
CONFIG = {
    "embed_dim": 8,
    "vision_cfg": {"layers": 2, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 32},
    "text_cfg": {"context_length": 12, "vocab_size": 64, "width": 16, "heads": 2, "layers": 2},
}
PREPROCESS = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def record(folder: Path, options: dict[str, Any]) -> None:
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    torch.manual_seed(3)
    vision, text = CLIPVisionCfg(**CONFIG["vision_cfg"]), CLIPTextCfg(**CONFIG["text_cfg"])
    model = CLIP(CONFIG["embed_dim"], vision, text, **options).eval()
    with torch.no_grad():  # The library starts some weights tiny, or at 0; wider ones make the test sharper.
        for parameter in model.parameters():
            if parameter.ndim:
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.logit_scale.fill_(4.7)
    pixels = torch.randn(3, 3, 32, 32)
    ids = torch.randint(1, 63, (4, 12))
    for row, end in enumerate((11, 4, 7, 9)):  # the end of a text has the highest id
        ids[row, end] = 63
        ids[row, end + 1 :] = 0
    with torch.no_grad():
        told = {"images": model.encode_image(pixels), "texts": model.encode_text(ids)}
        told["logits"] = model.get_logits(pixels, ids)[0]
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": {**CONFIG, **options}, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, str(folder / "open_clip_model.safetensors"))
    save_file({"pixels": pixels, "ids": ids, **told}, str(folder / "recorded.safetensors"))


if __name__ == "__main__":
    for name, options in VARIANTS.items():
        record(RECORDED / name, options)
