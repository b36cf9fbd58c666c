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
    _, to_come, _ = mmgem.__version__.partition(".dev")
    assert versions[0] == "Unreleased" and (to_come or mmgem.__version__ in versions)
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


NAME = re.compile(r"[-_.]+")


def locked(file: str) -> dict[str, list[str]]:
    """Hashes of each ``name==version`` of a lock; every line of it is one of the two."""
    found: dict[str, list[str]] = {}
    for line in (ROOT / file).read_text().splitlines():
        if line.startswith("#"):
            continue
        if requirement := re.fullmatch(r"([\w.-]+==[\w.+!]+)( ;[^\\]+)? \\", line):
            found[f"{requirement[1]}{requirement[2] or ''}"] = hashes = []
            continue
        digest = re.fullmatch(r"    --hash=sha256:([0-9a-f]{64})( \\)?", line)
        assert digest is not None, line
        hashes.append(digest[1])
    return found


def test_the_lock_has_a_hash_of_everything() -> None:
    lock, torch_lock = locked("requirements.lock"), locked("constraints/torch.lock")
    assert all(lock.values()) and all(torch_lock.values())
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    names = {NAME.sub("-", pin.partition("==")[0]) for pin in lock}
    assert {pin for pin in pins if not pin.startswith("torch==")} <= lock.keys()
    assert [pin for pin in pins if pin.startswith("torch==")] == [
        p for p in torch_lock if p.startswith("torch==")
    ]
    (build,) = locked("constraints/torch-cpu.lock")
    assert build.startswith(next(p for p in pins if p.startswith("torch==")) + "+cpu")
    extras = PROJECT["optional-dependencies"]
    for need in [*PROJECT["dependencies"], *(need for needs in extras.values() for need in needs)]:
        name = NAME.sub("-", re.split(r"[^\w.-]", need, maxsplit=1)[0]).lower()
        assert name in names | {"mmgem", "torch"}, f"{name}: make lock"
    assert "hatchling" in names and not names & {"torch", "triton"}


def test_what_runs_is_a_part_of_the_lock_with_no_tool_of_development() -> None:
    run, lock = locked("constraints/run.lock"), locked("requirements.lock")
    assert all(lock[pin] == hashes for pin, hashes in run.items())
    names = {pin.partition("==")[0] for pin in run}
    extras = PROJECT["optional-dependencies"]
    for need in [*PROJECT["dependencies"], *extras["serve"], *extras["heif"]]:
        assert NAME.sub("-", re.split(r"[^\w.-]", need, maxsplit=1)[0]).lower() in names | {"torch"}, need
    assert not names & {"pytest", "ruff", "mypy", "ray", "mteb", "openvino", "pyarrow", "selenium", "peft"}
    assert len(names) < len(lock) / 2


def test_the_container_installs_by_the_lock_and_names_what_there_is() -> None:
    steps = (ROOT / "Containerfile").read_text()
    assert "--require-hashes -r constraints/run.lock" in steps and "--no-deps --no-build-isolation" in steps
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", steps, re.MULTILINE):
        assert all((ROOT / source).exists() for source in sources.split())
    assert "USER mmgem" in steps and 'ENTRYPOINT ["mmgem"]' in steps
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "runs"} <= set(ignored)


LOCKS = ("requirements.lock", "constraints/run.lock", "constraints/torch.lock", "constraints/torch-cpu.lock")


def test_locks_name_no_place_to_fetch_from() -> None:
    for file in (*LOCKS, "Makefile", "Containerfile"):
        assert not re.search(r"https?:|index-url|find-links|trusted-host", (ROOT / file).read_text()), file


def test_every_locked_package_has_its_licence_listed() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text()
    for pin in locked("requirements.lock"):
        assert f"| {pin.partition('==')[0]} | " in page, f"{pin}: make licences"


def test_make_installs_by_the_lock() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "--require-hashes" in makefile and "cyclonedx-py environment" in makefile
    assert "$(call installed,requirements.lock)" in makefile
    assert "demo: run\n" in makefile and "$(call installed,constraints/run.lock)" in makefile
    assert "--no-deps --no-build-isolation -e ." in makefile
