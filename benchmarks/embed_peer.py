"""The other side of ``benchmarks/embed.py --peer``: random models of like size in sentence-transformers.

Started by it, in an environment without mmgem. A line of standard input is a job, ``{"images": [paths]}`` or
``{"texts": [...]}``; the answer is a line with the seconds that ``encode`` took.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    LlamaConfig,
    LlamaModel,
)


def text_model(place: Path, tokenizer: str) -> SentenceTransformer:
    """Six blocks of SmolLM2-135M's shape, the last token's state."""
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=6,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
    )
    LlamaModel(config).save_pretrained(place)
    words = AutoTokenizer.from_pretrained(tokenizer)
    words.pad_token = words.pad_token or words.eos_token
    words.save_pretrained(place)
    return SentenceTransformer(modules=[Transformer(str(place)), Pooling(576, "lasttoken")], device="cpu")


def image_model(place: Path, tokenizer: str) -> SentenceTransformer:
    """CLIP with a ViT-Ti/16 of 224 px; its text side is as small as can be."""
    vision = {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 3,
        "patch_size": 16,
        "image_size": 224,
    }
    text = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=512)).save_pretrained(place)
    words = AutoTokenizer.from_pretrained(tokenizer)
    CLIPProcessor(CLIPImageProcessor(), words).save_pretrained(place)
    return SentenceTransformer(str(place), device="cpu")


def main() -> None:
    torch.manual_seed(0)
    answers, sys.stdout = sys.stdout, sys.stderr
    with tempfile.TemporaryDirectory() as name:
        models = {
            "texts": text_model(Path(name, "text"), sys.argv[1]),
            "images": image_model(Path(name, "image"), sys.argv[1]),
        }
        for line in sys.stdin:
            ((kind, items),) = json.loads(line).items()
            began = time.perf_counter()
            inputs = [Image.open(path) for path in items] if kind == "images" else items
            models[kind].encode(inputs, batch_size=32, show_progress_bar=False)
            print(time.perf_counter() - began, file=answers, flush=True)


if __name__ == "__main__":
    main()
