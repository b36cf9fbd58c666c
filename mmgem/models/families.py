"""Which language models of transformers can be read in packed rows, and why the others cannot.

The table is what tests/test_llm_families.py runs and what docs/models.md prints, made with transformers 5.23.
A model type that is not in it is tried with its own weights (:mod:`mmgem.models.packing_check`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmgem.errors import ConfigError

_FULL = "full attention"
_SOME = "sliding windows in some layers"
_ALL = "sliding windows in all layers"
_CHUNKS = "chunked attention in some layers"
_PLAIN = "full attention; refused with layers that carry a state"

_STATE = "carries a state from token to token; packed rows would leak from text to text"
_ALIBI = "biases attention by places in the row (ALiBi), which are not the places in a text"
_ENCODER = "is an encoder of texts, not a causal language model"
_DECODER = "is the decoder of an encoder-decoder model, which counts positions by places in the row"
_PARTS = "holds more than a language model; give the config of its text part"
_OWN_MASKS = "makes its attention masks itself, by places in the row"
_INDEX = "chooses which keys to look at by an index that the KV cache does not hold"
_TOKENS = "needs token ids beside the input vectors, and prefixes have none"
_BLOCKS = "is not one list of blocks that follow each other"
_HEAD = "has an output head of several layers"


def _table(*groups: tuple[str, str]) -> dict[str, str]:
    return {name: note for note, names in groups for name in names.split()}


WORKS: Mapping[str, str] = _table(
    (
        _FULL,
        "apertus arcee aria_text axk1 biogpt bitnet codegen cohere ctrl dbrx deepseek_v2 deepseek_v3 "
        "diffllama ernie4_5 ernie4_5_moe falcon flex_olmo gemma glm glm4 glm4_moe glm4_moe_lite gpt-sw3 "
        "gpt2 gpt_bigcode gpt_neox gpt_neox_japanese gptj granite granitemoe granitemoeshared helium "
        "hunyuan_v1_dense hunyuan_v1_moe hy_v3 hyperclovax internlm3 iquestcoder jais2 jetmoe llama "
        "minicpm3 minimax_m2 minimax_m3_vl_text nanochat nemotron olmo olmo2 olmoe opt persimmon phi "
        "seed_oss solar_open stablelm xglm youtu",
    ),
    (
        _SOME,
        "afmoe beam cohere2 cohere2_moe cohere_compass_text cwm dots1 exaone4 exaone_moe flint gemma2 "
        "gemma3_text gemma4_unified_text gpt_oss granite_swa granitemoe_swa kolibri1 laguna mellum "
        "mimo_v2_flash ministral olmo3 qwen2 qwen2_moe qwen3 smollm3 vaultgemma",
    ),
    (_ALL, "doge ministral3 mistral mixtral phi3 phimoe qwen3_moe starcoder2"),
    (_CHUNKS, "llama4_text"),
    (_PLAIN, "granitemoehybrid"),
)
"""Model types that work, and how they attend."""

REFUSED: Mapping[str, str] = _table(
    (
        _STATE,
        "bailing_hybrid bamba falcon_h1 falcon_mamba inkling2_text inkling_text jamba kimi_linear lfm2 "
        "lfm2_moe lfm3 mamba mamba2 minimax nemotron_h olmo_hybrid qwen3_5_moe_text qwen3_5_text qwen3_next "
        "qwen4_exp_text recurrent_gemma rwkv xlstm zamba zamba2 zaya",
    ),
    (_ALIBI, "bloom mpt"),
    (_OWN_MASKS, "gpt_neo openai-gpt reformer"),
    (_INDEX, "axk2 deepseek_v32 deepseek_v4 dots3_note_text glm_moe_dsa hy_v4"),
    (_TOKENS, "blt cpmant gemma3n_text gemma4_text"),
    (_BLOCKS, "hrm_text longcat_flash"),
    (_HEAD, "modernbert-decoder"),
    (
        _ENCODER,
        "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta "
        "roberta-prelayernorm roc_bert roformer xlm xlm-roberta xlm-roberta-xl xlnet xmod",
    ),
    (
        _DECODER,
        "bart bigbird_pegasus blenderbot blenderbot-small marian mbart mvp pegasus plbart prophetnet trocr "
        "whisper",
    ),
    (
        _PARTS,
        "dots3_note emu3 fuyu gemma3 gemma3n gemma4 gemma4_assistant gemma4_unified "
        "gemma4_unified_assistant git got_ocr2 llama4 mllama moshi moss_transcribe_diarize musicgen "
        "musicgen_melody phi4_multimodal qwen3_5 qwen3_5_moe qwen4_exp",
    ),
)
"""Model types that do not, and why."""

_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}

_TIMES = {"cohere", "cohere2", "cohere2_moe", "cohere_compass_text", "hyperclovax"}
_OVER = {"granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared"}
_OVER |= {"minicpm3"}


def check_type(model_type: str) -> None:
    """Raise ``ConfigError`` for a model type that is known not to work."""
    if model_type in REFUSED:
        raise ConfigError(f"model.llm.config: {model_type} {REFUSED[model_type]}")


def check_config(config: Any) -> None:
    """Raise ``ConfigError`` where a transformers ``config`` tells that packed rows cannot work."""
    reason = None
    other = sorted(set(getattr(config, "layer_types", None) or ()) - _ATTENTION_LAYERS)
    if config.is_encoder_decoder:
        reason = _DECODER
    elif not hasattr(config, "hidden_size") or hasattr(config, "text_config"):
        reason = _PARTS
    elif other:
        reason = f"has layers of {', '.join(other)}: it {_STATE}"
    elif getattr(config, "alibi", False):
        reason = _ALIBI
    elif getattr(config, "hidden_size_per_layer_input", 0):
        reason = _TOKENS
    elif getattr(config, "word_embed_proj_dim", config.hidden_size) != config.hidden_size:
        reason = "has token vectors of another width than its hidden states"
    if reason is not None:
        raise ConfigError(f"model.llm.config: {config.model_type} {reason}")


def logit_factor(config: Any) -> float:
    """What a model of this transformers ``config`` multiplies its logits by."""
    scale = getattr(config, "logit_scale", None) or getattr(config, "logits_scaling", None) or 1.0
    if config.model_type in _TIMES:
        return scale
    return 1.0 / scale if config.model_type in _OVER else 1.0


def tables() -> str:
    """The tables of docs/models.md."""
    lines = []
    for heading, table in (("Works", WORKS), ("Refused, since it", REFUSED)):
        lines += [f"| {heading} | `model_type` |", "|---|---|"]
        for note in dict.fromkeys(table.values()):
            names = ", ".join(f"`{name}`" for name, own in table.items() if own == note)
            lines.append(f"| {note} | {names} |")
        lines.append("")
    return "\n".join(lines)
