"""Runs command lines as if no extra were installed: ``python base_install.py ROWS.json`` prints a JSON list
of ``[exit code, standard output, last line of standard error]``."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

EXTRAS = {
    *(
        "peft",
        "tensorboard",
        "tensorboardX",
        "gguf",
        "accelerate",
        "bm25s",
        "pypdf",
        "pyarrow",
        "ray",
        "usearch",
        "av",
    ),
    *("qdrant_client", "lancedb", "lance", "sentence_transformers", "mteb", "onnx", "onnxruntime"),
    *(
        "onnxscript",
        "onnx_ir",
        "openvino",
        "fastapi",
        "starlette",
        "uvicorn",
        "multipart",
        "python_multipart",
    ),
    *(
        "prometheus_client",
        "webdataset",
        "datasets",
        "pandas",
        "sklearn",
        "scipy",
        "httpx",
        "openai",
        "pillow_heif",
        "watchfiles",
    ),
}
_NEEDED = {"httpx"}  # by huggingface_hub


class BaseInstall(PathFinder):
    """Finds what the base install has."""

    @classmethod
    def find_spec(cls, fullname: str, path: Any = None, target: Any = None) -> Any:
        """None for what belongs to an extra."""
        if fullname.partition(".")[0] in EXTRAS - _NEEDED:
            return None
        return super().find_spec(fullname, path, target)


def main() -> None:
    """Run the rows of the file."""
    sys.meta_path[sys.meta_path.index(PathFinder)] = BaseInstall
    from mmgem.cli.main import main as mmgem

    told = []
    for argv in json.loads(Path(sys.argv[1]).read_text()):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = mmgem(argv)
        told.append([code, out.getvalue(), (err.getvalue().splitlines() or [""])[-1]])
    print(json.dumps(told))


if __name__ == "__main__":
    main()
