"""What is said of the package in more than one place is the same: versions, bounds, extras, checks of CI."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import yaml

import mmgem

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def lowest():
    spec = importlib.util.spec_from_file_location("lowest", ROOT / "constraints" / "lowest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_version() -> None:
    assert PROJECT["version"] == mmgem.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[(.+?)\]", changelog, re.MULTILINE)
    assert versions[0] == "Unreleased" and mmgem.__version__ in versions
    kinds = set(re.findall(r"^### (.+)$", changelog, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_lowest_versions_are_those_of_the_project(lowest) -> None:
    assert lowest.OUT.read_text() == lowest.lowest(), "python constraints/lowest.py writes it"


def test_what_is_pinned_for_development_is_allowed(lowest) -> None:
    bounds = dict(line.split("==") for line in lowest.lowest().splitlines()[1:])
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    for name, version in (line.split("==") for line in pins):
        if name in bounds:
            numbers = [[int(n) for n in text.split("+")[0].split(".")] for text in (version, bounds[name])]
            assert numbers[0] >= numbers[1]


def test_extras_that_messages_name_are_there() -> None:
    extras = PROJECT["optional-dependencies"]
    assert extras["plugs"] == ["mmgem[integrations]"]
    for path in (ROOT / "mmgem").rglob("*.py"):
        for name in re.findall(r"mmgem\[(\w+)\]", path.read_text()):
            assert name in extras, path


def test_ci_and_hooks_run_the_checks() -> None:
    ci = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    jobs = ci["jobs"]
    told = {step.get("run", "") for step in jobs["check"]["steps"]}
    assert {"ruff check .", "ruff format --check .", "mypy"} <= told
    matrix = jobs["test"]["strategy"]["matrix"]
    supported = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if "Python :: 3." in c]
    assert matrix["python"] == supported and min(supported) == PROJECT["requires-python"].removeprefix(">=")
    assert matrix["include"] == [{"python": supported[0], "dependencies": "lowest"}]
    for job in jobs.values():
        assert job.get("needs", "check") in jobs and all("uses" in s or "run" in s for s in job["steps"])
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"
    assert {hook["entry"].split()[0] for hook in repo["hooks"]} == {"ruff", "mypy"}
    assert all(hook["language"] == "system" for hook in repo["hooks"])


def test_links_of_the_guide_lead_somewhere() -> None:
    for page in ("CONTRIBUTING.md", "README.md"):
        for link in re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text()):
            assert link.startswith("http") or (ROOT / link).exists(), (page, link)
