"""What is said of a field at the field holds in any config class, also one of a task of another package."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from mmgem.cli.main import main
from mmgem.config import TASKS, Recipe, TrainConfig, from_dict
from mmgem.config.checks import check_needs, check_ranges, entries, free_on_init, free_on_resume, numbers
from mmgem.config.describe import as_markdown, as_text, chosen_sections, own_tasks, recipe_sections
from mmgem.config.fields import Need, Range, setting
from mmgem.errors import ConfigError, UsageError

ROOT = Path(__file__).parents[1]

IMAGES = Need("data.train", lambda recipe: recipe.data.train is not None, "counts for images")
MARGIN = Need("a margin", lambda recipe: recipe.tasks["margin"].margin > 0, "counts with a margin")


@dataclass
class Hard:
    """Hard negatives."""

    count: int = setting(0, help="How many.", low=0, needs=MARGIN)
    shares: dict[str, float] = setting(default_factory=dict, help="Of each kind.", low=0, high=1)
    log_every: int = setting(10, help="Steps.", low=1, free_on_resume=True)


@dataclass
class MarginConfig:
    """A loss with a margin.

    Not part of a table.
    """

    margin: float = setting(0.2, help="Least gap.", low=0, below=1, free_on_init=True)
    plain: float = 1.0
    many: list[float] = field(default_factory=list)
    free: dict[str, Any] = field(default_factory=dict)
    kind: Literal["a", "b|c"] = setting("a", help="Which.")
    hard: Hard = setting(default_factory=lambda: Hard(count=3), needs=IMAGES)
    other: Hard | None = None
    parts: list[Hard] = field(default_factory=list)


class MarginTask:
    Config = MarginConfig


def made(task: MarginConfig, train: str | None = None) -> Any:
    """A recipe as the checks see it: a table of its own, and those of tasks."""
    return RecipeOfTasks(TrainConfig(Path("run")), DataOf(train), {"margin": task})


@dataclass
class DataOf:
    train: str | None = None


@dataclass
class RecipeOfTasks:
    train: TrainConfig
    data: DataOf
    tasks: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("ends", "words", "inside", "outside"),
    [
        ({"low": 0}, "0 or more", [0, 1e300], [-1e-9, math.inf, math.nan]),
        ({"low": 1, "high": 4}, "from 1 to 4", [1, 4], [0, 4.5]),
        ({"low": 0, "below": 1}, "from 0 to below 1", [0, 0.99], [1, -0.1]),
        ({"above": 0}, "above 0", [1e-300], [0, math.inf]),
        ({"above": 0, "high": math.inf}, "above 0", [math.inf], [0, math.nan]),
        ({"above": 0, "high": 1}, "above 0, at most 1", [1], [0, 1.1]),
        ({"above": -1, "below": 1}, "above -1 and below 1", [0], [-1, 1]),
        ({"high": 2}, "at most 2", [-9, 2], [2.1, -math.inf]),
        ({"below": 2}, "below 2", [1.9], [2]),
        ({"range_words": "a score"}, "a score", [-9, 9], [math.inf]),
    ],
)
def test_ranges_and_their_words(
    ends: dict[str, Any], words: str, inside: list[float], outside: list[float]
) -> None:
    allowed: Range = setting(1, **ends).metadata["mmgem"].range
    assert str(allowed) == words
    assert all(value in allowed for value in inside)
    assert not any(value in allowed for value in outside)


@pytest.mark.parametrize("ends", [{"low": 0, "above": 0}, {"high": 1, "below": 1}, {"low": 2, "high": 1}])
def test_a_range_that_is_none_is_refused_where_it_is_written(ends: dict[str, float]) -> None:
    with pytest.raises(TypeError, match="a range has"):
        setting(1, **ends)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (MarginConfig(margin=1.0), "margin.margin: 1.0 is not from 0 to below 1"),
        (MarginConfig(plain=math.inf), "margin.plain: inf is not a finite number"),
        (MarginConfig(many=[1.0, math.nan]), "margin.many: nan is not a finite number"),
        (MarginConfig(hard=Hard(count=-1)), "margin.hard.count: -1 is not 0 or more"),
        (MarginConfig(hard=Hard(shares={"a": 2.0})), "margin.hard.shares: 2.0 is not from 0 to 1"),
        (MarginConfig(other=Hard(log_every=0)), "margin.other.log_every: 0 is not 1 or more"),
        (MarginConfig(parts=[Hard(), Hard(count=-2)]), "margin.parts.count: -2 is not 0 or more"),
    ],
)
def test_numbers_of_a_section_of_ones_own(task: MarginConfig, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}$"):
        check_ranges(task, "margin")
    with pytest.raises(ConfigError, match=f"^{said}$"):
        check_ranges(made(task))


def test_a_number_without_a_range_has_to_be_finite() -> None:
    check_ranges(MarginConfig(plain=-1e300, many=[0.0], free={"limits": [0.0, math.inf]}), "margin")
    assert {name for name, _, _ in numbers(MarginConfig(free={"limit": 1.0}), "margin")} == {
        "margin.margin",
        "margin.plain",
        "margin.hard.count",
        "margin.hard.log_every",
    }


def test_needs_of_a_section_of_ones_own() -> None:
    check_needs(made(MarginConfig()))  # the section's own default of hard.count is no change
    check_needs(made(MarginConfig(margin=0.0, hard=Hard(count=3))))
    check_needs(made(MarginConfig(hard=Hard(count=4)), "data"))
    with pytest.raises(ConfigError, match=r"^margin\.hard\.count: counts for images$"):
        check_needs(made(MarginConfig(hard=Hard(count=4))))
    with pytest.raises(ConfigError, match=r"^margin\.hard\.log_every: counts for images$"):
        check_needs(made(MarginConfig(hard=Hard(count=3, log_every=2))))
    with pytest.raises(ConfigError, match=r"^margin\.hard\.count: counts with a margin$"):
        check_needs(made(MarginConfig(margin=0.0, hard=Hard(count=4)), "data"))
    with pytest.raises(ConfigError, match=r"^margin\.other\.count: counts with a margin$"):
        check_needs(made(MarginConfig(margin=0.0, other=Hard(count=1)), "data"))


def test_what_may_change_in_a_section_of_ones_own() -> None:
    task = MarginConfig(other=Hard())
    assert free_on_resume(task, "margin") == {"margin.hard.log_every", "margin.other.log_every"}
    assert free_on_resume(made(task)) >= {"margin.hard.log_every", "train.threads"}
    assert free_on_init(task, "margin") == {"margin.margin"}

    @dataclass
    class Outer:
        hard: Hard = setting(default_factory=Hard, free_on_resume=True)

    assert free_on_resume(Outer(), "outer") == {f"outer.hard.{n}" for n in ("count", "shares", "log_every")}


def test_fields_are_described_with_those_of_tasks() -> None:
    tasks = {"margin": MarginTask}
    sections = recipe_sections(tasks)
    assert [part.name for part in sections][-3:] == ["margin", "margin.hard", "margin.other"]
    (table,) = [part for part in sections if part.name == "margin"]
    assert table.meaning == "A loss with a margin."
    page = as_markdown(sections)
    assert "| `margin` | `0.2` | from 0 to below 1 | Least gap. |  |" in page
    assert '| `kind` | `"a"` | `"a"`, `"b\\|c"` | Which. |  |' in page
    assert "| `count` | `3` | whole number, 0 or more | How many. Needs data.train and a margin. |  |" in page
    assert "| `log_every` | `10` | whole number, 1 or more | Steps. Needs data.train. | yes |" in page
    text = as_text(chosen_sections(["margin.hard", "optim"], tasks))
    assert (
        "[margin.hard]  Hard negatives.\n  margin.hard.count = 3  (whole number, 0 or more)\n      How"
        in text
    )
    assert "[optim]" in text and "[train]" not in text and "`" not in text
    with pytest.raises(UsageError, match=r"^hard: no table of a recipe \(known: train, data, "):
        chosen_sections(["hard"], tasks)


def test_the_page_of_fields_is_made_of_them() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert page == as_markdown(recipe_sections(own_tasks())), (
        "python -m mmgem.config.describe > docs/recipes.md"
    )


def test_every_default_is_in_the_page() -> None:
    names = {f.name for part in recipe_sections(own_tasks()) for f in part.fields}
    tasks = {name: task.Config() for name, task in own_tasks().items()}
    assert names == {entry.name for entry in entries(Recipe(TrainConfig(Path("run")), tasks=tasks))}


def test_a_registered_task_is_described_and_checked(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TASKS._made, "margin", MarginTask)
    assert main(["train", "--fields", "margin"]) == 0
    assert "  margin.margin = 0.2  (from 0 to below 1)\n      Least gap.\n" in capfd.readouterr().out
    assert "margin" not in own_tasks()
    recipe = from_dict(Recipe, {"train": {"out": "run"}, "margin": {"margin": 1.5}})
    with pytest.raises(ConfigError, match=r"^margin\.margin: 1\.5 is not from 0 to below 1"):
        check_ranges(recipe)


def test_train_prints_fields(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--fields"]) == 0
    whole, _ = capfd.readouterr()
    assert whole == as_text(recipe_sections())
    assert main(["train", "--fields", "optim", "model.encoder"]) == 0
    some, _ = capfd.readouterr()
    heads = [line.partition("  ")[::2] for line in some.splitlines() if line.startswith("[")]
    assert [name for name, _ in heads] == ["[model.encoder]", "[optim]"]
    assert heads[0][1] == "The vision encoder."
    assert "  optim.max_grad_norm = 1.0  (above 0)\n" in some
    assert main(["train", "--fields", "optimiser"]) == 2
    assert "optimiser: no table of a recipe" in capfd.readouterr().err
    assert main(["train"]) == 2
    assert "Missing argument 'RECIPE.toml' (see mmgem train --help)" in capfd.readouterr().err
