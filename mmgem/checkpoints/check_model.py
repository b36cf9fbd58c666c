"""Look at everything in a model folder, and at folders of tensors."""

from __future__ import annotations

from pathlib import Path

from mmgem.checkpoints.model_folder import load_model
from mmgem.checkpoints.tensors import load_tensors
from mmgem.errors import CheckpointError
from mmgem.utils.checksums import folder_problems, read_checksums
from mmgem.utils.checkup import Checkup

MODEL_REMEDY = "copy the folder again, or train or export the model again"


def check_files(folder: Path, found: Checkup, remedy: str) -> bool:
    """Compare the files of a folder with its checksums; returns whether all are as they were written. That it
    has none is noted."""
    problems = folder_problems(folder)
    for path, problem in problems:
        found.add(path, problem, remedy)
    if not problems and read_checksums(folder) is None:
        found.notes.append(
            f"{folder}: has no checksums, an earlier version wrote it; writing it again adds them"
        )
    return not problems


def check_tensors(path: Path, found: Checkup, remedy: str) -> None:
    """Read a file of tensors: all must be finite."""
    try:
        tensors = load_tensors(path)
    except CheckpointError as error:
        found.add(path, str(error).removeprefix(f"{path}: "), remedy)
        return
    found.counts["tensors"] = found.counts.get("tensors", 0) + len(tensors)


def check_model(folder: Path) -> Checkup:
    """Load the model of a folder and compare its files with their checksums; its tensors must be finite."""
    found = Checkup("model")
    if not check_files(folder, found, MODEL_REMEDY):
        return found
    try:
        network, _ = load_model(folder)
    except CheckpointError as error:
        found.add(folder, str(error).removeprefix(f"{folder}: "), MODEL_REMEDY)
        return found
    found.counts = {
        "tensors": len(network.state_dict()),
        "parameters": sum(t.numel() for t in network.parameters()),
    }
    return found
