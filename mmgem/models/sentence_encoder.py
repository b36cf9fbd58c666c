"""A frozen sentence encoder of transformers: token states averaged, as all-MiniLM and e5 are used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mmgem.errors import CheckpointError
from mmgem.utils.model_files import read_json_object
from mmgem.utils.pretrained import load_config, load_pretrained, load_tokenizer, local_folder, refuse_missing


def default_prompt(folder: Path) -> str:
    """What the model in ``folder`` wants before every text, as sentence-transformers keeps it.

    It is the prompt called ``default_prompt_name`` in ``config_sentence_transformers.json``; "" if none is
    named. Raises ``CheckpointError`` if that file cannot be read or the name has no prompt.
    """
    path = folder / "config_sentence_transformers.json"
    if not path.exists():
        return ""
    config = read_json_object(path)
    name = config.get("default_prompt_name")
    if name is None:
        return ""
    prompts = config.get("prompts")
    prompt = prompts.get(name) if isinstance(prompts, dict) and isinstance(name, str) else None
    if not isinstance(prompt, str):
        raise CheckpointError(f"{path}: default_prompt_name: no prompt called {str(name)[:60]!r}")
    return prompt


def sentence_encoder(
    folder: Path, batch: int = 32, max_tokens: int | None = None
) -> Callable[[Sequence[str]], np.ndarray]:
    """A function from n texts to unit rows ``(n, E)`` float32; texts of like length share a batch.

    ``max_tokens``: where longer texts are cut; None: the model's own limit. Before every text stands the
    folder's ``default_prompt``. Weights stored in half precision are multiplied in bfloat16 where the CPU
    has instructions for it (rows within cosine 0.9999 of float32's), others always in float32. Raises
    ``CheckpointError``.
    """
    import torch
    import torch.nn.functional as F
    from transformers import AutoModel

    folder = local_folder(folder)
    prompt = default_prompt(folder)
    half = load_config(folder).dtype in (torch.float16, torch.bfloat16)
    tokenizer = load_tokenizer(folder)
    model, told = load_pretrained(AutoModel, folder)
    refuse_missing(told, str(folder), spare="pooler")
    rows = model.get_input_embeddings().weight.shape[0]
    if max(tokenizer.get_vocab().values()) >= rows:
        raise CheckpointError(f"{folder}: the tokenizer has ids beyond the model's table of {rows} rows")
    model.eval()
    lower = half and torch.cpu._is_avx512_bf16_supported()

    @torch.inference_mode()
    def encode(texts: Sequence[str]) -> np.ndarray:
        rows = np.empty((len(texts), model.config.hidden_size), np.float32)
        order = sorted(range(len(texts)), key=lambda n: len(texts[n]))
        for at in range(0, len(order), batch):
            chosen = order[at : at + batch]
            options = {"padding": True, "truncation": True, "max_length": max_tokens, "return_tensors": "pt"}
            read = tokenizer([prompt + texts[n] for n in chosen], **options)
            mask = read["attention_mask"][..., None]
            with torch.autocast("cpu", torch.bfloat16, enabled=lower):
                states = model(**read).last_hidden_state.float()
            rows[chosen] = F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1).numpy()
        return rows

    return encode
