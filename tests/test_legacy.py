"""Keys of earlier versions are read as what they are called now, wherever that is, and are answered so."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from mmgem.config import TASKS, from_dict, legacy
from mmgem.config.former import ByValue
from mmgem.config.legacy import current_config, current_recipe, current_tensor, current_tensors
from mmgem.config.recipe import changed, load_recipe
from mmgem.errors import ConfigError

MODE = ByValue(
    "loss.name",
    {
        "joint": {"pairs": {}},
        "contrastive": {"pairs.caption.weight": 0},
        "captioning": {"pairs.contrast.weight": 0},
    },
)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A section that was split: into tables of another one, and a switch whose values became fields."""
    monkeypatch.setattr(legacy, "RECIPE_UPGRADES", [])
    lines = {
        "loss": "pairs.contrast",
        "loss.name": MODE,
        "loss.caption_weight": "pairs.caption.weight",
        "loss.contrastive_weight": "pairs.contrast.weight",
        "loss.teacher.path": "teacher",
        "loss.seed": "train.seed",
        "texts": "self",
        "texts.scoring.titles": "self.scoring.title_beams",
        "texts.sides": lambda sides: {f"self.{side}_side": True for side in sides},
        "texts.gone": lambda _: {},
    }
    monkeypatch.setattr(legacy, "RECIPE_KEYS", lines)


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ({"pairs": {"contrast": {"weight": 1}}, "x": 2}, None, []),
        (
            {"loss": {"smoothing": 0.1, "caption_weight": 2.0}},
            {"pairs": {"contrast": {"smoothing": 0.1}, "caption": {"weight": 2.0}}},
            [
                "loss.smoothing is called pairs.contrast.smoothing now",
                "loss.caption_weight is called pairs.caption.weight now",
            ],
        ),
        (
            {"loss": {"name": "contrastive"}},
            {"pairs": {"caption": {"weight": 0}}},
            ['loss.name = "contrastive" is written pairs.caption.weight = 0 now'],
        ),
        ({"loss": {"name": "joint"}}, {"pairs": {}}, ['loss.name = "joint" is written [pairs] now']),
        (
            {"pairs": {"caption": {"weight": 3}}, "loss": {"name": "joint"}},
            {"pairs": {"caption": {"weight": 3}}},
            ['loss.name = "joint" is written [pairs] now'],
        ),
        (
            {"loss": {"teacher": {"path": "t", "heat": 1}, "seed": 3}, "train": {"out": "o"}},
            {
                "teacher": "t",
                "pairs": {"contrast": {"teacher": {"heat": 1}}},
                "train": {"seed": 3, "out": "o"},
            },
            [
                "loss.teacher.path is called teacher now",
                "loss.teacher.heat is called pairs.contrast.teacher.heat now",
                "loss.seed is called train.seed now",
            ],
        ),
        ({"texts": {}}, {"self": {}}, ["texts is called self now"]),
        (
            {"texts": {"sides": ["left", "up"], "gone": 1, "a.b": {"c": {}}}},
            {"self": {"left_side": True, "up_side": True, "a.b": {"c": {}}}},
            [
                'texts.sides = ["left", "up"] is written self.left_side = true, self.up_side = true now',
                "texts.gone = 1 is written no more now",
                "texts.a.b.c is called self.a.b.c now",
            ],
        ),
        ({"loss": 3}, {"pairs": {"contrast": 3}}, ["loss is called pairs.contrast now"]),
    ],
)
def test_keys_move_to_any_section_and_depth(
    old: dict[str, Any], new: dict[str, Any] | None, lines: list[str], keys: None
) -> None:
    now, answers = current_config(old)
    assert now == (old if new is None else new)
    assert list(answers.values()) == lines
    assert current_config(now) == (now, {})


def test_a_switch_decides_over_the_weight_that_it_switched_off(keys: None) -> None:
    both = {"loss": {"caption_weight": 0.5, "name": "contrastive"}}
    assert current_config(both)[0] == {"pairs": {"caption": {"weight": 0}}}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            {"loss": {"caption_weight": 1}, "pairs": {"caption": {"weight": 1}}},
            r"loss\.caption_weight: called pairs\.caption\.weight now, and that is given too",
        ),
        (
            {"pairs": {"caption": {"weight": 1}}, "loss": {"name": "contrastive"}},
            r"loss\.name: called pairs\.caption\.weight now, and that is given too",
        ),
        (
            {"loss": {"name": "both"}},
            r"loss\.name: 'both' is not one of 'joint', 'contrastive', 'captioning'",
        ),
        ({"loss": {"name": ["joint"]}}, r"loss\.name: \['joint'\] is not one of"),
        ({"pairs": 3, "loss": {"heat": 1}}, r"pairs\.contrast\.heat: pairs is not a table"),
    ],
)
def test_what_is_said_twice_or_never_was_is_refused(data: dict[str, Any], said: str, keys: None) -> None:
    with pytest.raises(ConfigError, match=f"^{said}"):
        current_config(data)


def test_a_section_alone(keys: None) -> None:
    """As in a file beside a model; what has left the section is left out."""
    assert current_config({"titles": 3, "kind": "x"}, "texts.scoring")[0] == {"title_beams": 3, "kind": "x"}
    assert current_config({"title_beams": 3}, "self.scoring") == ({"title_beams": 3}, {})
    assert current_config({"smoothing": 1, "seed": 3}, "loss")[0] == {"smoothing": 1}
    assert current_config({}, "texts") == ({}, {})
    assert current_config(["no table"], "texts") == (["no table"], {})


def test_a_whole_recipe_may_be_changed_after(keys: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_texts(data: dict[str, Any], former: Collection[str]) -> None:
        if any(key.startswith("texts") for key in former) and data["self"].get("passages") is None:
            data.pop("self", None)

    monkeypatch.setattr(legacy, "RECIPE_UPGRADES", [without_texts])
    assert current_recipe({"texts": {"batch": 3}, "loss": {"seed": 3}})[0] == {"train": {"seed": 3}}
    assert current_recipe({"texts": {"passages": "p"}})[0] == {"self": {"passages": "p"}}
    assert current_recipe({"texts": {"batch": 3}}, [("self.passages", "p")]) == (
        {"self": {"batch": 3, "passages": "p"}},
        ["texts.batch is called self.batch now"],
    )
    assert current_recipe({"self": {"batch": 3}})[0] == {"self": {"batch": 3}}


Load = Callable[..., Any]


@pytest.fixture
def load(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Load:
    """Reads a recipe of ``text`` with overrides; warnings are in ``load.lines`` of the last call."""
    path = tmp_path / "r.toml"
    caplog.set_level(logging.WARNING, "mmgem.config")

    def read(text: str, *overrides: str) -> tuple[Any, list[str]]:
        path.write_text(f"train.out = 'out'\n{text}\n")
        caplog.clear()
        recipe = load_recipe(path, list(overrides))
        return recipe, [record.getMessage() for record in caplog.records if record.name == "mmgem.config"]

    return read


def test_old_recipes_are_read_and_answered(load: Load) -> None:
    recipe, lines = load(
        "train.batch = 7\n[start]\nllm = 'x'\ntower = 'y'\n[model.tower]\ncut = 3\nkind = 'transformers'"
    )
    assert (recipe.train.batch_size, recipe.init.llm, recipe.init.encoder) == (7, "x", "y")
    assert (recipe.model.encoder.freeze_until, recipe.model.encoder.kind) == (3, "transformers")
    assert lines == [
        "train.batch is called train.batch_size now",
        "start.llm is called init.llm now",
        "start.tower is called init.encoder now",
        "model.tower.cut is called model.encoder.freeze_until now",
        "model.tower.kind is called model.encoder.kind now",
    ]
    assert load("train.batch_size = 7")[1] == []
    with pytest.raises(ConfigError, match=r"^train\.batch: called train\.batch_size now, and that is given"):
        load("train.batch = 7\ntrain.batch_size = 7")


@pytest.mark.parametrize("text", ["train.batch = 7", "train.batch_size = 7", ""])
@pytest.mark.parametrize("override", ["train.batch=8", "train.batch_size=8", "train={batch=8, out='out'}"])
def test_overrides_by_old_and_new_names(text: str, override: str, load: Load) -> None:
    assert load(text, override)[0].train.batch_size == 8


def test_an_old_override_is_answered_once(load: Load) -> None:
    recipe, lines = load("train.batch = 7", "train.batch=8", "start.llm=x", "optim.clip=inf")
    assert (recipe.train.batch_size, recipe.init.llm) == (8, "x")
    assert recipe.optim.max_grad_norm == float("inf")
    assert lines == [
        "train.batch is called train.batch_size now",
        "start.llm is called init.llm now",
        "optim.clip is called optim.max_grad_norm now",
    ]
    again = changed(recipe, ["train.batch=9", "start={llm='z'}"])
    assert (again.train.batch_size, again.init.llm, again.init.encoder) == (9, "z", recipe.init.encoder)
    with pytest.raises(ConfigError, match=r"^train\.out\.deep: out is not a table"):
        load("", "train.out.deep=1")
    with pytest.raises(ConfigError, match=r"^start\.llm: start is not a table"):
        load("start = 3", "start.llm=x")


@pytest.mark.parametrize(
    ("text", "overrides", "scale", "bias"),
    [
        ("old.mode = 'unbiased'", [], 2.0, 0.0),
        ("old.mode = 'unbiased'\nold.bias = 0.5", ["old.mode=plain"], 2.0, 0.5),
        ("old.mode = 'plain'", ["old.mode=unbiased"], 2.0, 0.0),
        ("model.logit_bias = 3.0", ["old.mode=unbiased"], 2.0, 0.0),
        ("old.mode = 'unbiased'\nold.bias = 0.7", [], 2.0, 0.0),
        ("old.mode = 'unbiased'", ["old.bias=0.7"], 2.0, 0.0),
        ("old.mode = 'unbiased'", ["model.logit_bias=0.7"], 2.0, 0.7),
        ("old.mode = 'plain'", ["old.scale=4.0", "old.bias=0.7"], 4.0, 0.7),
    ],
)
def test_overrides_of_switches(
    text: str,
    overrides: list[str],
    scale: float,
    bias: float,
    load: Load,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An old switch goes on deciding, in the recipe or the command line; a new name is the last word."""
    lines = {
        "old.mode": ByValue("old.mode", {"plain": {"model": {}}, "unbiased": {"model.logit_bias": 0.0}}),
        "old.bias": "model.logit_bias",
        "old": "model",
        "old.scale": "model.logit_scale",
    }
    for key, line in lines.items():
        monkeypatch.setitem(legacy.RECIPE_KEYS, key, line)
    model = load(f"{text}\nold.scale = 2.0", *overrides)[0].model
    assert (model.logit_scale, model.logit_bias) == (scale, bias)


IMAGES = "data.train = 'd.jsonl'\n"
TEXTS = "corpus.passages = 'c.jsonl'\n"


@pytest.mark.parametrize(
    ("text", "overrides", "tasks"),
    [
        (IMAGES + "objective.name = 'joint'", [], {"image_text": {}}),
        (
            IMAGES + "objective.name = 'contrastive'\nobjective.caption_weight = 1.0",
            ["objective.loss=sigmoid"],
            {"image_text": {"contrastive": {"loss": "sigmoid"}, "caption": {"weight": 0.0}}},
        ),
        (IMAGES + "objective.name = 'captioning'", [], {"image_text": {"contrastive": {"weight": 0.0}}}),
        (
            IMAGES + "[objective]\nsoft_targets = 0.5\nteacher = 'minilm'\nmask_same = true\n"
            "vocabulary_sample = 9\nlabel_smoothing = 0.1",
            [],
            {
                "image_text": {
                    "contrastive": {"distill_weight": 0.5, "teacher": "minilm", "mask_false_negatives": True},
                    "caption": {"sampled_softmax": 9, "label_smoothing": 0.1},
                }
            },
        ),
        # The data is said on the command line.
        (
            "objective.vocabulary_sample = 9",
            ["data.train=d"],
            {"image_text": {"caption": {"sampled_softmax": 9}}},
        ),
        (
            TEXTS + "objective.name = 'joint'\nobjective.ask_weight = 0.3\ncorpus.batch = 3\n"
            "corpus.scoring.titles = 2\ncorpus.titles = false\ncorpus.negatives = 2",
            ["corpus.questions=4", "corpus.dev="],
            {
                "self_retrieval": {
                    "passages": "c.jsonl",
                    "ask_weight": 0.3,
                    "batch_size": 3,
                    "scoring": {"title_beams": 2},
                    "titles": False,
                    "hard_negatives": 2,
                    "generated_queries": 4,
                    "dev": "",
                }
            },
        ),
        ("", ["corpus.passages=c"], {"self_retrieval": {"passages": "c"}}),
        # Images came first.
        (TEXTS + IMAGES, [], {"image_text": {}, "self_retrieval": {"passages": "c.jsonl"}}),
        (
            TEXTS + IMAGES + "objective.caption_weight = 0.5",
            [],
            {"image_text": {"caption": {"weight": 0.5}}, "self_retrieval": {"passages": "c.jsonl"}},
        ),
        (IMAGES + "[corpus]", [], {"image_text": {}}),
        ("", [], {"image_text": {}}),
    ],
)
def test_objectives_and_corpora_are_tasks_now(
    text: str, overrides: list[str], tasks: dict[str, Any], load: Load
) -> None:
    recipe = load(text, *overrides)[0]
    assert recipe.tasks == {name: from_dict(TASKS[name].Config, plain) for name, plain in tasks.items()}
    assert list(recipe.tasks) == list(tasks)


def test_the_temperature_s_floor_moved(load: Load) -> None:
    recipe, lines = load(IMAGES + "objective.max_logit_scale_log = 3.0")
    assert recipe.optim.max_logit_scale_log == 3.0
    assert lines == ["objective.max_logit_scale_log is called optim.max_logit_scale_log now"]


def test_tensors() -> None:
    assert current_tensors(
        {"tower.net.x": 1, "h1.weight": 2, "emb": 3, "llm.lm.h1.x": 4, "encoder.y": 5}
    ) == {
        "encoder.net.x": 1,
        "visual_projection.weight": 2,
        "emb_token": 3,
        "llm.lm.h1.x": 4,
        "encoder.y": 5,
    }
    assert current_tensor("h3.0.weight") == "visual_connector.0.weight"
