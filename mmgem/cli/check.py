"""``mmgem check``: whether what was written is still as it was written."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmgem.cli.output import JsonOption, note, print_json
from mmgem.errors import MMGEMError, UsageError

if TYPE_CHECKING:
    from mmgem.utils.checkup import Checkup

_STORES = ("qdrant:", "lance:")


def check(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="An index, a model, a training run, a corpus, shards, what mmgem bulk wrote, or a STORE.",
        ),
    ],
    name: Annotated[str, typer.Option("--name", metavar="N", help="Of a store's collection.")] = "mmgem",
    as_json: JsonOption = False,
) -> None:
    """Read all that lies under PATH and compare it with its checksums, and with what it should be.

    A line for each problem says what to do about it, and the exit code is 1; without any the line begins with
    "ok". What an earlier version wrote has no checksums; a line on standard error says so and how it gets
    them, and shapes, ids and lengths are still looked at. With --json: {"path", "kind", "ok", "counts",
    "problems": [{"file", "problem", "remedy"}], "notes"}.
    """
    found = _check_store(path, name) if path.startswith(_STORES) else _check_path(Path(path))
    if as_json:
        print_json({"path": path, **found.to_json()})
    else:
        for text in found.notes:
            note(text)
        for problem in found.problems:
            print(problem)
        if not found.problems:
            counts = ", ".join(f"{count} {what}" for what, count in found.counts.items())
            print(f"ok: {found.kind} {path}: {counts}")
    if found.problems:
        raise typer.Exit(MMGEMError.exit_code)


def _check_store(place: str, name: str) -> Checkup:
    from mmgem.search.stores import open_store
    from mmgem.search.stores.check_store import check_store

    with open_store(place, name) as store:
        return check_store(store)


def _check_path(path: Path) -> Checkup:
    """Look at ``path`` as what it is. Raises UsageError if it is nothing that mmgem writes."""
    if (path / "photos.sqlite3").is_file():
        from mmgem.search.check_index import check_index

        return check_index(path)
    if (path / "texts.sqlite3").is_file():
        from mmgem.self_retrieval.check_text_index import check_text_index

        return check_text_index(path)
    if (path / "bulk.json").is_file():
        from mmgem.bulk.check_output import check_output

        return check_output(path)
    if (path / "corpus.json").is_file():
        from mmgem.self_retrieval.check_corpus import check_corpus

        return check_corpus(path)
    if (path / "state.json").is_file():
        from mmgem.train.check_run import check_step

        return check_step(path)
    if (path / "checkpoints").is_dir() or (path / "model" / "config.json").is_file():
        return _check_run(path)
    if (path / "config.json").is_file():
        return _check_model(path)
    from mmgem.data.shards import find_shards, is_shards

    if is_shards(path):
        from mmgem.data.shards.check_shards import check_shards

        return check_shards(find_shards(path))
    from mmgem.checkpoints.resolve import packaged_models, resolve

    if str(path) in packaged_models():
        return _check_model(resolve(path))
    raise UsageError(f"{path}: no index, model, training run, corpus, shards or output of mmgem bulk is here")


def _check_run(path: Path) -> Checkup:
    from mmgem.train.check_run import check_checkpoints

    found = check_checkpoints(path / "checkpoints")
    if (path / "model" / "config.json").is_file():
        found.include(_check_model(path / "model"))
    return found


def _check_model(folder: Path) -> Checkup:
    """A model with what lies beside its weights: calibration, graphs, corpus."""
    from mmgem.checkpoints.check_model import MODEL_REMEDY, check_model
    from mmgem.checkpoints.resolve import read_config
    from mmgem.export.run import damaged_graphs, graph_folder, wanted_graphs
    from mmgem.inference.calibration import CALIBRATION_FILE, MatchCalibration

    found = check_model(folder)
    with suppress(MMGEMError):  # a damaged config is told of already
        dim = read_config(folder)[0].dim
        try:
            MatchCalibration.load(folder, dim)
        except MMGEMError as error:
            file = folder / CALIBRATION_FILE
            found.add(file, str(error).removeprefix(f"{file}: "), "run mmgem calibrate again")
    graphs = graph_folder(folder)
    if graphs.is_dir():
        try:
            if info := wanted_graphs(folder, "auto", "cpu"):
                for name in damaged_graphs(folder, info):
                    found.add(graphs / name, "damaged", "write the graphs anew with mmgem export")
        except MMGEMError as error:
            found.add(graphs, str(error).removeprefix(f"{graphs}: "), MODEL_REMEDY)
    if (folder / "corpus" / "corpus.json").is_file():
        from mmgem.self_retrieval.check_corpus import check_corpus

        found.include(check_corpus(folder / "corpus"))
    return found
