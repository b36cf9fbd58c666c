"""Look at the checkpoints of a training run."""

from __future__ import annotations

import json
from pathlib import Path

from mmgem.checkpoints.check_model import check_files, check_tensors
from mmgem.train.state import saved_steps
from mmgem.utils.checkup import Checkup


def check_step(folder: Path) -> Checkup:
    """Read one checkpoint (``step-N``) and compare its files with their checksums; all must be finite."""
    found, remedy = Checkup("checkpoint"), f"remove {folder} to go on from the one before"
    if not check_files(folder, found, remedy):
        return found
    try:
        if not {"step", "recipe"} <= json.loads((folder / "state.json").read_text()).keys():
            raise ValueError("not what mmgem writes")
    except (OSError, ValueError, AttributeError) as error:
        found.add(folder / "state.json", f"damaged ({error})", remedy)
    for path in sorted(folder.glob("*.safetensors")):
        check_tensors(path, found, remedy)
    found.counts["checkpoints"] = 1
    return found


def check_checkpoints(folder: Path) -> Checkup:
    """Every checkpoint of the folder ``checkpoints`` of a run."""
    found = Checkup("training run", {"checkpoints": 0})
    for step in saved_steps(folder):
        found.include(check_step(folder / f"step-{step:08d}"))
    return found
