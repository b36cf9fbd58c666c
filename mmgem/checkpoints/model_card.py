"""The model card written beside the weights: what it is, what it learned from, how it scored."""

from __future__ import annotations

import json
from typing import Any

from mmgem.config import Recipe, to_dict


def model_card(recipe: Recipe, results: dict[str, Any]) -> str:
    """Markdown card of a run: figures on its dev images and the recipe that made it."""
    lines = ["# mmgem model", "", "One vision encoder and one LLM that embed and caption images.", ""]
    if recipe.data.train is None and recipe.data.texts:
        lines += [f"- training data: texts alone, {', '.join(f'`{path}`' for path in recipe.data.texts)}"]
    else:
        lines += [f"- training data: `{recipe.data.train}`, split `{recipe.data.split}`"]
    lines += [f"- started from: encoder `{recipe.init.encoder}`, LLM `{recipe.init.llm}`"]
    if recipe.init.checkpoint:
        lines[-1] = f"- started from: checkpoint `{recipe.init.checkpoint}`"
    lines += [f"- step: {results.get('step')}", "", "## Figures on the dev images (greedy captions)", ""]
    figures = {k: v for k, v in results.items() if k != "step"}
    lines += ["```json", json.dumps(figures, indent=1), "```", "", "## Recipe", ""]
    lines += ["```json", json.dumps(to_dict(recipe), indent=1), "```", ""]
    return "\n".join(lines)
