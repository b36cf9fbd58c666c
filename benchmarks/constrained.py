"""Constrained decoding: ours against transformers' ``generate(prefix_allowed_tokens_fn=...)`` on a dict trie.

    python benchmarks/constrained.py [--rows 2000] [--queries 16] [--beams 5] [--model FOLDER] [--quick]

The same model, prompts, rows and beams. Rows are a title of 2 to 6 tokens, the end token and the beginning of
a passage, as Self-Retrieval decodes them. Both sides must return the same rows in the same order with equal
log-probabilities (1e-3), which is asserted; ``renormalize_logits`` makes transformers' those of the allowed
tokens, as ours are. Ours: questions batched, only allowed rows of the head, runs without a choice fed in one
pass, nothing fed behind the point where a row is certain.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
import torch

from mmgem.models.kv_cache import BatchedKVCache
from mmgem.models.llm import LLM
from mmgem.self_retrieval.constrained_decoding import constrained_beam_search
from mmgem.self_retrieval.trie import Trie

END = 2


def make_rows(count: int, length: int, vocabulary: int, seed: int = 0) -> list[list[int]]:
    """Distinct rows of ``length`` tokens: a title that about five share, the end token, a passage."""
    rng = np.random.default_rng(seed)
    draw = lambda n: (rng.zipf(1.3, n) % (vocabulary - 10) + 10).tolist()  # noqa: E731
    titles = list({tuple(draw(int(rng.integers(2, 7)))) for _ in range(max(1, count // 5))})
    rows = set()
    while len(rows) < count:
        title = titles[int(rng.integers(len(titles)))]
        rows.add((*[*title, END, *draw(length)][: length - 1], END))
    return [list(row) for row in sorted(rows)]


def dict_trie(rows: list[list[int]]) -> dict[int, Any]:
    """Nested dicts, a token to what follows it."""
    trie: dict[int, Any] = {}
    for row in rows:
        node = trie
        for token in row:
            node = node.setdefault(token, {})
    return trie


def theirs(lm: Any, trie: dict[int, Any], prompts: list[list[int]], beams: int, length: int) -> list[Any]:
    """transformers' beam search, one prompt at a time (prompts differ in length)."""
    found = []
    for prompt in prompts:

        def allowed(_: int, ids: torch.Tensor, start: int = len(prompt)) -> list[int]:
            node = trie
            for token in ids.tolist()[start:]:
                node = node[token]
            return list(node) or [END]

        ids = torch.tensor([prompt])
        out = lm.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            prefix_allowed_tokens_fn=allowed,
            num_beams=beams,
            num_return_sequences=beams,
            max_new_tokens=length,
            min_new_tokens=length,
            do_sample=False,
            length_penalty=0.0,
            early_stopping=False,
            renormalize_logits=True,
            return_dict_in_generate=True,
            output_scores=True,
            eos_token_id=None,
            pad_token_id=0,
        )
        rows = out.sequences[:, len(prompt) :].tolist()
        found.append(list(zip(rows, out.sequences_scores.tolist(), strict=True)))
    return found


@torch.inference_mode()
def ours(llm: LLM, trie: Trie, prompts: list[list[int]], beams: int) -> list[Any]:
    """All prompts at once."""
    rows = BatchedKVCache.empty(llm, len(prompts), torch.device("cpu"))
    rows.append(prompts)
    paths = constrained_beam_search(rows, trie, [trie.root] * len(prompts), beams)
    return [[(trie.row(p.node.lo).tolist(), p.log_prob) for p in own] for own in paths]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a model folder; default: SmolLM2-135M as pulled")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--length", type=int, default=24)
    parser.add_argument("--queries", type=int, default=16)
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a toy model, to see that it runs")
    options = parser.parse_args()
    llm = _llm(options)
    vocabulary = llm.vocabulary
    rows = make_rows(options.rows, options.length, vocabulary)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(10, vocabulary, rng.integers(12, 30)).tolist() for _ in range(options.queries)]
    trie, nested = Trie.build(rows), dict_trie(rows)
    slow, fast = [], []
    for _ in range(options.repeats):
        began = time.perf_counter()
        plain = theirs(llm.lm, nested, prompts, options.beams, options.length)
        slow.append(time.perf_counter() - began)
        began = time.perf_counter()
        found = ours(llm, trie, prompts, options.beams)
        fast.append(time.perf_counter() - began)
        for a, b in zip(plain, found, strict=True):
            assert [row for row, _ in a] == [row for row, _ in b], "the two sides find different rows"
            assert np.allclose([s for _, s in a], [s for _, s in b], atol=1e-3), "other probabilities"
    print(
        f"{options.queries} questions, {options.rows} rows of {options.length} tokens, {options.beams} beams,"
    )
    print(
        f"{torch.get_num_threads()} threads; median of {options.repeats} rounds; the same rows and scores\n"
    )
    for name, taken in (("transformers, dict trie", slow), ("mmgem", fast)):
        seconds = statistics.median(taken)
        rate, ratio = options.queries / seconds, statistics.median(slow) / seconds
        print(f"{name:24} {seconds:8.2f} s  {rate:8.2f} questions/s  {ratio:6.2f}x")


def _llm(options: argparse.Namespace) -> LLM:
    torch.manual_seed(0)
    if options.model:
        from mmgem.checkpoints.model_folder import load_model
        from mmgem.checkpoints.resolve import resolve

        made = load_model(resolve(options.model))[0].llm
    elif options.quick:
        config = {"model_type": "llama", "vocab_size": 500, "hidden_size": 72, "intermediate_size": 96}
        made = LLM(config | {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1})
        options.rows, options.queries, options.repeats = min(options.rows, 200), min(options.queries, 4), 1
        with torch.no_grad():
            made.lm.get_submodule("model.norm").weight.mul_(20)
    else:
        from transformers import AutoModelForCausalLM

        from mmgem.checkpoints.download import base_folder
        from mmgem.models.llm import export_config

        lm = AutoModelForCausalLM.from_pretrained(base_folder("smollm2"), dtype=torch.float32)
        made = LLM(export_config(lm))
        made.lm.load_state_dict(lm.state_dict())
    made.lm.config.use_cache = True
    return made.eval()


if __name__ == "__main__":
    main()
