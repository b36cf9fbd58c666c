"""Random models of a few thousand parameters, with what they need around them: words, pictures, folders.

Nothing here is downloaded. Models are made from seeds, so a failing test fails again.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from mmgem.checkpoints.model_folder import build
from mmgem.config import EncoderConfig, LLMConfig, ModelConfig, Preprocessing, Recipe, from_dict
from mmgem.data.batches import Batch
from mmgem.data.tokens import Tokenizer
from mmgem.distributed.world import SINGLE_PROCESS
from mmgem.models.network import MMGEMNetwork
from mmgem.models.networks import make_network
from mmgem.self_retrieval.passages import Passage
from mmgem.tasks.base import Terms
from mmgem.tasks.image_text.task import ImageTextTask

WORDS = (  # noqa: SIM905
    "<end> <unk> a the dog cat man woman child runs sits jumps on in with grass snow water beach street red "
    "blue green black white left right big small two three ball bike horse boat tree house sky and of near to"
).split()

_VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
_LM = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}

ENCODERS: dict[str, EncoderConfig] = {
    "none": EncoderConfig("none", config={"size": 32}),
    "efficientnet_lite0": EncoderConfig(freeze_until=11, config={"size": 32, "stem": 8, "head": 16}),
    "clip": EncoderConfig(
        "transformers", config={"model_type": "clip_vision_model", "intermediate_size": 16} | _VIT
    ),
    "siglip": EncoderConfig(
        "transformers", config={"model_type": "siglip_vision_model", "intermediate_size": 16} | _VIT
    ),
    "dinov2": EncoderConfig("transformers", config={"model_type": "dinov2"} | _VIT),
    "dinov3": EncoderConfig(
        "transformers",
        config={"model_type": "dinov3_vit", "intermediate_size": 16, "num_register_tokens": 2} | _VIT,
    ),
    "vit": EncoderConfig("transformers", config={"model_type": "vit", "intermediate_size": 16} | _VIT),
    "convnext": EncoderConfig(
        "transformers",
        config={
            "model_type": "convnext",
            "hidden_sizes": [4, 4, 8, 16],
            "depths": [1, 1, 1, 1],
            "image_size": 64,
        },
    ),
}

LLMS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"} | _LM,
    "tied llama": {"model_type": "llama", "tie_word_embeddings": True} | _LM,
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True} | _LM,
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": True} | _LM,
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": len(WORDS),
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 256,
        "bos_token_id": 0,
        "eos_token_id": 0,
    },
    "gemma2": {"model_type": "gemma2", "final_logit_softcapping": 5.0} | _LM,
    "gemma3": {"model_type": "gemma3_text"} | _LM,
    "mistral": {"model_type": "mistral", "sliding_window": 4} | _LM,
    "windowed gemma3": {
        "model_type": "gemma3_text",
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    | _LM,
}


def network(llm: str = "llama", encoder: str = "clip", seed: int = 0, **options: Any) -> MMGEMNetwork:
    """A random network in eval mode; ``options`` are fields of ``ModelConfig``."""
    torch.manual_seed(seed)
    config = ModelConfig(
        encoder=copy.deepcopy(ENCODERS[encoder]), llm=LLMConfig(dict(LLMS[llm])), **({"dim": 8} | options)
    )
    made = make_network(config).eval()
    with torch.no_grad():  # The library starts all weights tiny; wider ones make the tests sharper.
        for name, p in made.named_parameters():
            if p.ndim >= 2 and not name.startswith("encoder."):
                p.mul_(4)
    return made


def twin(of: MMGEMNetwork) -> MMGEMNetwork:
    """A copy with the same weights in other memory."""
    made = build(of.config)
    made.load_state_dict(of.state_dict())
    return made.train(of.training)


def prep(size: int = 32, **options: Any) -> Preprocessing:
    """Preprocessing for the toy encoders."""
    return Preprocessing(size=size, **options)


def hf_tokenizer() -> Any:
    """A transformers tokenizer of one token a word."""
    from tokenizers import Tokenizer as Fast
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    fast = Fast(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    fast.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<end>", unk_token="<unk>")


def tokenizer(preprocessing: Preprocessing | None = None) -> Tokenizer:
    """The toy words behind our tokenizer."""
    return Tokenizer(hf_tokenizer(), preprocessing or prep())


def sequences(counts: list[int], seed: int = 0) -> list[Tensor]:
    """Random token ids, ``counts`` of them each, without the end token."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, len(WORDS), (n,), generator=generator) for n in counts]


def packed(
    of: MMGEMNetwork,
    texts: Sequence[Tensor] = (),
    captions: Sequence[Tensor] = (),
    prefixes: Tensor | None = None,
    row_length: int = 128,
) -> tuple[Tensor, Tensor]:
    """Embeddings of ``texts`` and the states that predict ``captions``, in one packed pass."""
    segments = of.text_segments(texts)
    if prefixes is not None:
        segments += of.caption_segments(captions, prefixes)
    output = of.forward_packed(segments, row_length)
    return output.embeddings, output.prediction_states


def batch(of: MMGEMNetwork, images: int = 4, each: int = 1, seed: int = 0) -> Batch:
    """A batch of random features with ``each`` captions of 2 to 9 tokens an image."""
    generator = torch.Generator().manual_seed(seed)
    side = of.encoder.size
    with torch.no_grad():
        features = of.encoder.frozen_stem(torch.randn(images, 3, side, side, generator=generator))
    ids = sequences(torch.randint(2, 10, (images * each,), generator=generator).tolist(), seed)
    end = torch.tensor([0])
    owner = torch.arange(images).repeat_interleave(each)
    return Batch(
        features=features,
        texts=ids,
        text_owner=owner,
        captions=ids,
        caption_owner=owner,
        caption_targets=torch.cat([t for tokens in ids for t in (tokens, end)]),
        vocabulary=torch.cat([*ids, end]).unique(),
    )


def sentence(rng: np.random.Generator, words: int = 6) -> str:
    """A sentence of toy words."""
    return " ".join(WORDS[i] for i in rng.integers(2, len(WORDS), words))


def photos(folder: Path, train: int = 24, dev: int = 8, seed: int = 0) -> Path:
    """Write pictures of flat colours and noise with three captions each; returns the dataset file."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(train + dev):
        colour = rng.integers(0, 200, 3)
        pixels = (colour + rng.integers(0, 55, (40, 48, 3))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        captions = [sentence(rng, int(rng.integers(3, 8))) for _ in range(3)]
        split = "train" if i < train else "dev"
        lines.append(json.dumps({"image": f"images/{i}.png", "captions": captions, "split": split}))
    path = folder / "captions.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


COLOURS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 220), "black": (10, 10, 10)}


def photos_and_clips(folder: Path, train: int = 24, dev: int = 8, seed: int = 0) -> Path:
    """Write photos and clips of 6 seconds, as many each, of noise in four colours, captioned with these; of
    some clips a moment is meant. Returns the dataset file."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(train + dev):
        name, colour = list(COLOURS.items())[i % 4]
        noisy = (np.array(colour) + rng.integers(0, 30, (6, 32, 32, 3))).astype(np.uint8)
        first, *rest = map(Image.fromarray, noisy)
        row: dict[str, Any] = {"captions": [f"a {name} {thing}" for thing in ("ball", "boat")]}
        if i % 8 < 4:
            first.save(folder / f"{i}.png")
            row |= {"image": f"{i}.png"}
        else:
            first.save(folder / f"{i}.webp", save_all=True, append_images=rest, duration=1000, lossless=True)
            row |= {"video": f"{i}.webp"} | ({"start": 1, "end": 5.2} if i % 3 else {})
        lines.append(json.dumps(row | {"split": "train" if i < train else "dev"}))
    path = folder / "captions.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def passages(count: int = 9, titles: int = 3, seed: int = 0) -> list[Passage]:
    """Passages of toy words, ``titles`` titles in turn."""
    rng = np.random.default_rng(seed)
    made = [" ".join(f"{sentence(rng, 7).capitalize()}." for _ in range(3)) for _ in range(count)]
    names = [sentence(rng, 2) for _ in range(titles)]
    return [Passage(f"p{i}", names[i % titles], text) for i, text in enumerate(made)]


def corpus(folder: Path, count: int = 9, titles: int = 3, each: int = 2) -> tuple[Path, Path]:
    """Write a corpus and queries, ``each`` a passage."""
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    made = passages(count, titles)
    rows = [{"id": p.id, "title": p.title, "text": p.text} for p in made]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [
        {"id": f"{p.id}-{i}", "query": sentence(rng, 5), "positives": [p.id], "answers": [p.text.split()[0]]}
        for p in made
        for i in range(each)
    ]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    return folder / "corpus.jsonl", folder / "queries.jsonl"


def base_models(folder: Path, llm: str = "llama", encoder: str = "clip", seed: int = 0) -> tuple[Path, Path]:
    """Write base weights as a user would have them: an LLM folder with tokenizer, and an encoder folder."""
    made = network(llm, encoder, seed)
    lm_folder, encoder_folder = folder / f"{llm}-{seed}", folder / f"{encoder}-{seed}"
    made.llm.lm.save_pretrained(lm_folder)
    hf_tokenizer().save_pretrained(lm_folder)
    if encoder == "efficientnet_lite0":
        encoder_folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.contiguous() for name, value in made.encoder.net.state_dict().items()}
        save_file(weights, str(encoder_folder / "model.safetensors"))
        (encoder_folder / "config.json").write_text('{"kind": "efficientnet_lite0"}')
        generator = torch.Generator().manual_seed(seed)
        head = {"weight": 30 * torch.randn(len(CLASSES), made.encoder.channels, generator=generator)}
        head["bias"] = torch.zeros(len(CLASSES))
        save_file(head, str(encoder_folder / "classifier.safetensors"))
    else:
        made.encoder.net.save_pretrained(encoder_folder)
    return lm_folder, encoder_folder


CLASSES = ("dog", "cat", "horse", "tree", "house", "boat", "red ball")
"""What the classifier of the toy EfficientNet tells apart."""


def labels(folder: Path) -> Path:
    """Write the names of :data:`CLASSES`, two of them with a synonym, and two kinds above them."""
    lines: list[dict[str, Any]] = [{"id": name, "names": [name]} for name in CLASSES]
    lines[1]["names"].append("small cat")
    lines += [
        {"id": "animal", "names": ["big dog"], "members": ["dog", "cat"]},
        {"id": "thing", "names": ["house"], "members": ["tree", "boat"]},
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "labels.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def text_teacher(folder: Path, width: int = 8, seed: int = 0, pad: str = "<unk>") -> Path:
    """Write a random sentence encoder that reads the toy words."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=width,
    )
    BertModel(config).save_pretrained(folder)
    hf = hf_tokenizer()
    hf.pad_token = pad
    hf.save_pretrained(folder)
    return folder


def change(plain: dict[str, Any], changes: dict[str, Any]) -> None:
    """Set ``section__field=value`` in a recipe in plain form, of tables as deep as they are."""
    for key, value in changes.items():
        *sections, name = key.split("__")
        table = plain
        for section in sections:
            table = table.setdefault(section, {})
        table[name] = value


def recipe(folder: Path, data: Path, lm: Path, encoder: Path, **changes: Any) -> Recipe:
    """A short joint run over ``data``; ``changes`` are ``section__field=value``, of tables as deep as
    they are."""
    efficient = encoder.name.startswith("efficientnet")
    plain: dict[str, Any] = {
        "data": {"train": str(data), "cache": str(folder / "features"), "cached_augmentations": 3},
        "preprocessing": {"size": 32, "lowercase": True},
        "init": {"encoder": str(encoder), "llm": str(lm)},
        "model": {
            "dim": 8,
            "dropout": 0.1,
            "encoder": {
                "kind": "efficientnet_lite0",
                "freeze_until": 11,
                "config": {"size": 32, "stem": 8, "head": 16},
            }
            if efficient
            else {"kind": "transformers"},
        },
        "optim": {"warmup_steps": 2, "lr_llm": 1e-3, "lr_heads": 1e-2},
        "train": {
            "out": str(folder / "run"),
            "epochs": 4,
            "batch_size": 8,
            "log_every": 1,
            "checkpoint_every": 3,
            "threads": 1,
        },
    }
    change(plain, changes)
    if "self_retrieval" in plain and plain["data"].get("train"):
        plain.setdefault("image_text", {})
    return from_dict(Recipe, plain)


def image_text(objective: str = "joint", **fields: Any) -> ImageTextTask:
    """The task of images and texts with one of the losses, or both; ``fields`` of its section as
    ``contrastive__weight=2.0``."""
    changes = {f"image_text__{name}": value for name, value in fields.items()}
    made = recipe(Path("run"), Path("data.jsonl"), Path("lm"), Path("clip"), **ONLY[objective], **changes)
    return ImageTextTask(made.tasks["image_text"], made)


def losses(of: MMGEMNetwork, batch: Batch, objective: str = "joint", **fields: Any) -> Terms:
    """Losses of :func:`image_text`."""
    return image_text(objective, **fields).forward(of, batch, SINGLE_PROCESS)


ONLY: dict[str, dict[str, Any]] = {
    "joint": {},
    "contrastive": {"image_text__caption__weight": 0.0},
    "captioning": {"image_text__contrastive__weight": 0.0},
}
"""Changes to a recipe that leave one of the losses over images and texts, or both."""
