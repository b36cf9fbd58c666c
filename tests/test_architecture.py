"""The house stays as docs/architecture.md draws it: arrows between folders point down, none in circles."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mmgem"

FLOORS = (  # noqa: SIM905
    "errors utils config distributed data encoders models checkpoints inference search evaluate "
    "self_retrieval tasks train report export plan api bulk clean compare integrations demo serve cli"
).split()
"""From the ground up: a room imports from those before it, never from those behind."""

FILES = {path: path.relative_to(PACKAGE.parent).with_suffix("") for path in sorted(PACKAGE.rglob("*.py"))}


def name_of(path: Path) -> str:
    parts = FILES[path].parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """The modules of the package that a file imports, wherever in it, for types alone too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mmgem"):
            assert node.module is not None
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "mmgem"}
    return found


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "mmgem"


@pytest.mark.parametrize("path", [p for p in FILES if len(FILES[p].parts) > 1], ids=lambda p: str(FILES[p]))
def test_arrows_point_down(path: Path) -> None:
    own = room(name_of(path))
    if own in ("mmgem", "__main__", "__init__"):
        return
    for module in imports(path):
        if module == "mmgem":  # the root names what users need; only the top rooms may go through it
            assert own in ("serve", "cli", "integrations"), f"{FILES[path]} imports the root"
            continue
        assert FLOORS.index(room(module)) <= FLOORS.index(own), f"{FILES[path]} imports {module}"


def test_nothing_imports_in_a_circle() -> None:
    edges = {name_of(path): {m for m in imports(path) if m in MODULES} for path in FILES}
    state: dict[str, int] = defaultdict(int)

    def visit(module: str, way: list[str]) -> None:
        state[module] = 1
        for other in sorted(edges[module]):
            assert state[other] != 1, " -> ".join([*way, other])
            if not state[other]:
                visit(other, [*way, other])
        state[module] = 2

    for module in sorted(edges):
        if not state[module] and module != "mmgem":
            visit(module, [module])


def test_no_file_is_over_500_lines() -> None:
    root = PACKAGE.parent
    for folder in ("mmgem", "tests", "benchmarks", "examples"):
        for path in (root / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 500, path


def test_every_room_is_on_the_page() -> None:
    rooms = {room(module) for module in MODULES} - {"mmgem", "__main__"}
    assert rooms == set(FLOORS)


def names_of_kinds() -> set[str]:
    """The names that tasks, terms, encoders and connectors are chosen by."""
    from mmgem import CONNECTORS, ENCODERS, NETWORKS, TASKS, ImageTextTask

    names = {*TASKS, *ImageTextTask.terms, *ENCODERS, *CONNECTORS, *NETWORKS}
    return (names | {"joint", "captioning"}) - {"none"}


@pytest.mark.parametrize("room", ["tasks", "train", "plan", "checkpoints", "models", "encoders", "export"])
def test_nobody_asks_what_something_is_called(room: str) -> None:
    """What a task, term, encoder or connector can do is said by itself: no other file compares its name."""
    kinds = names_of_kinds()
    for path in sorted((PACKAGE / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            values = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            for value in values:
                items = value.elts if isinstance(value, ast.Tuple | ast.List | ast.Set) else [value]
                for item in items:
                    asked = isinstance(item, ast.Constant) and item.value in kinds
                    where = f"{FILES[path]}:{node.lineno}"
                    assert not asked or (path.stem, item.value) in OWN, f"{where} compares a name"


OWN = {("efficientnet", "efficientnet_lite0"), ("network", "linear")}
"""Files that read a name of their own: the format of base weights; the shape of a projection."""
