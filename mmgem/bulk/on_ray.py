"""Partitions made by workers on Ray: a pool of actors of Ray Data, each with the model loaded once.

Which photos are in which partition is settled before, and the file of a partition is named by its number. So
a partition that Ray has made again, because the worker that made it was killed, replaces nothing and adds
nothing. Workers share the CPUs evenly and torch gets no more threads than that. Errors come back as values:
Ray would wrap them, and start a worker that fails for a good reason again and again.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mmgem import errors
from mmgem.bulk.collection import Partition
from mmgem.bulk.worker import BulkJob, Worker
from mmgem.errors import MMGEMError, UsageError
from mmgem.utils.plugins import VARIABLE

_STORE_BYTES = 128 << 20  # what passes between processes is small: names of photos


class _RayWorker:
    """What runs in an actor."""

    def __init__(self, job: BulkJob, threads: int):
        self.worker = Worker(job, threads)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Make the partition in ``row``; returns its number and how many photos were skipped, or the
        error."""
        partition = Partition.from_json(row["part"])
        try:
            return {
                "number": partition.number,
                "skipped": self.worker.write_partition(partition),
                "kind": "",
                "error": "",
            }
        except MMGEMError as error:
            error_type = type(error).__name__
            return {"number": partition.number, "skipped": 0, "kind": error_type, "error": str(error)}


def require_ray() -> Any:
    """The module ``ray``, with Ray Data: it reports no usage, and prints nothing of what workers or nodes
    say, which would go to standard output. Raises UsageError if it is not installed."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS_SKIP_REGEX": "."}  # read at import
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UsageError("workers need Ray: pip install 'mmgem[ray]'; --workers 0 does without") from error
    return ray


def write_on_ray(
    job: BulkJob, partitions: Sequence[Partition], workers: int | None, address: str | None
) -> Generator[tuple[Partition, int]]:
    """Make ``partitions``; yields each as it is done, in any order, and how many of its photos were skipped.
    Raises what a worker raised."""
    numbered = {partition.number: partition for partition in partitions}
    with ray_session(workers, address) as ray:
        size, cpus = _pool_size(ray, workers, len(partitions))
        rows = [{"part": partition.to_json()} for partition in partitions]
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _RayWorker,
            fn_constructor_args=(job, cpus),
            compute=ray.data.ActorPoolStrategy(size=size, max_tasks_in_flight_per_actor=1),
            num_cpus=cpus,
        )
        for table in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in table.to_pylist():
                if row["kind"]:
                    raise getattr(errors, row["kind"])(row["error"])
                yield numbered[row["number"]], row["skipped"]


def _pool_size(ray: Any, workers: int | None, partitions: int) -> tuple[int, int]:
    """How many workers, and how many CPUs each: as many as so many workers find on the cluster's nodes."""
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    if (workers or 1) > sum(nodes):
        raise UsageError(f"{workers or 1} workers need as many CPUs; the cluster has {sum(nodes)}")
    size = min(workers or sum(nodes), partitions)
    return size, max(n for n in range(1, max(nodes) + 1) if sum(node // n for node in nodes) >= size)


@contextmanager
def ray_session(workers: int | None = None, address: str | None = None) -> Iterator[Any]:
    """A Ray to work on: that at ``address``, else the one this process has begun, else a new one on this
    machine, with a CPU for each of ``workers`` and in silence. Gives the module."""
    ray = require_ray()
    if address is None and ray.is_initialized():
        yield ray
        return
    cpus = workers if (workers or 0) > (os.cpu_count() or 1) else None
    plugins = {"env_vars": {VARIABLE: os.environ[VARIABLE]}} if os.environ.get(VARIABLE) else None
    local = {"include_dashboard": False, "num_cpus": cpus, "object_store_memory": _STORE_BYTES}
    try:
        with _silent_stderr():
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=plugins,
                **({} if address else local),
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(f"{address or 'Ray'}: cannot be reached: {error}") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Keep Ray's core from writing to standard error: it is told to log to its files only, and the line in
    which it says so goes nowhere."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    sys.stderr.flush()
    saved, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(devnull)
