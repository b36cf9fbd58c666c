"""Search in 1,000,000 vectors of 512 numbers: HNSW indexes of several quantizations against our exact search.

    python benchmarks/ann.py [--work /tmp/mmgem-ann] [--count 1000000] [--kinds int8,int8:256,...]
    python benchmarks/ann.py --quick        # 50,000 vectors, int8 only

What is made is kept in --work: stopped, the next run goes on, and one that finds all of them only
measures. Each kind is measured in a process of its own, our exact search and HNSW in turn on the same
index and queries; recall is the share of the exact first ten that HNSW's first ten have.

The data are 10,000 clusters (fewer if there are fewer than 100 vectors for each): a centre and, for each
member, noise; both normal, with a variance that falls along hidden axes as that of the photos' vectors of
`tiny` does (80% in the first 32 of 512, 95% in 128), brought to unit length. Two members of a cluster have a
cosine of about 0.6. Queries are members that are not in the index ("near"), or have a cosine of 0.5 with such
a member, as a caption has with its photo ("far").
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from memory import resident

from mmgem.search.hits import Hit
from mmgem.search.hnsw import HNSWConfig, update_hnsw_index
from mmgem.search.index_store import HashedFile, IndexStore, NewContent, read_index
from mmgem.search.search import PhotoIndex
from mmgem.utils.files import write_atomic
from mmgem.utils.progress import track

K = 10
DIM = 512
BLOCK = 10_000  # vectors made and recorded at once
ALIKE = 0.6  # what members of a cluster share of their variance
CAPTION = 0.5
QUERIES = 2**32 - 1  # their seed
KINDS = "int8,int8:256,int8:128,float16,binary,float32"
ROUNDS, EXACT_EACH, GRAPH_EACH, BATCH, FAR = 5, 4, 100, 64, 200  # queries


def normal(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Normal rows whose variance falls along hidden axes and sums to 1: (rows, DIM) float32."""
    variance = 1 / (1 + np.square(np.arange(DIM) / 10))
    axes = np.linalg.qr(np.random.default_rng(7).standard_normal((DIM, DIM)))[0]
    scales = np.sqrt(variance / variance.sum())
    return rng.standard_normal((rows, DIM), np.float32) @ (scales[:, None] * axes.T).astype(np.float32)


def members(seed: int, rows: int, clusters: int) -> np.ndarray:
    """Unit vectors (rows, DIM) of random clusters."""
    rng = np.random.default_rng([1, seed])
    centres = normal(np.random.default_rng(0), clusters)[rng.integers(0, clusters, rows)]
    return units(math.sqrt(ALIKE) * centres + math.sqrt(1 - ALIKE) * normal(rng, rows))


def far_from(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors with a cosine of about CAPTION with ``vectors`` (n, DIM)."""
    other = units(normal(np.random.default_rng(2), len(vectors)))
    return units(CAPTION * vectors + math.sqrt(1 - CAPTION**2) * other)


def units(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make_index(out: Path, count: int, clusters: int) -> None:
    """Write the index, or the rest of it: one photo a vector."""
    with IndexStore(out, "synthetic") as store:
        store.set_source(out, "")
        start = len(store.photos())
        blocks = range(start, count, BLOCK)
        for at in track(blocks, "Vectors", [min(BLOCK, count - b) for b in blocks], " vectors"):
            numbers = range(at, min(at + BLOCK, count))
            vectors = members(at // BLOCK, len(numbers), clusters)
            digests = [number.to_bytes(16, "big") for number in numbers]
            contents = [
                NewContent(digest, vector[None], (None,))
                for digest, vector in zip(digests, vectors, strict=True)
            ]
            files = [
                HashedFile(f"{n:07}.jpg", 1, 1, digest) for n, digest in zip(numbers, digests, strict=True)
            ]
            store.record(contents, files)


def make_hnsw_index(index: Path, out: Path, config: HNSWConfig, threads: int) -> float:
    """Keep an HNSW index in ``out``, beside links to the files of ``index``; returns its CPU seconds."""
    out.mkdir(exist_ok=True)
    for file in index.iterdir():
        if file.suffix in (".sqlite3", ".f32") and not (out / file.name).exists():
            (out / file.name).symlink_to(file.resolve())
    spent = out / "seconds.json"
    before = json.loads(spent.read_text()) if spent.exists() else 0.0

    def timed(parts: Sequence[slice]) -> Iterator[slice]:
        start = time.process_time()
        sizes = [part.stop - part.start for part in parts]
        for part in track(parts, f"HNSW {config}", sizes, " vectors"):
            yield part
            write_atomic(spent, json.dumps(before + time.process_time() - start))

    update_hnsw_index(out, config, threads=threads, progress=timed)
    return json.loads(spent.read_text())


def measure(out: Path, clusters: int) -> dict[str, Any]:
    """Recall, queries a second and memory of the index ``out`` with its HNSW index, and of exact search."""
    index, exact = PhotoIndex.open(out), PhotoIndex.open(out, exact=True)
    assert index.hnsw is not None
    queries = members(QUERIES, ROUNDS * GRAPH_EACH, clusters)
    times: dict[str, list[float]] = {"exact": [], "hnsw": []}

    def timed(name: str, search: Callable[[np.ndarray, int], Any], vectors: np.ndarray, each: int = 1) -> Any:
        began = time.perf_counter()
        found = search(vectors, K)
        times[name].append((time.perf_counter() - began) / each)
        return found

    index.search(queries[0], K), exact.search(queries[0], K)  # read the files
    found: list[list[Hit]] = []
    for mine in np.split(queries, ROUNDS):
        for query in mine[:EXACT_EACH]:
            timed("exact", exact.search, query)
        found += [timed("hnsw", index.search, query) for query in mine]
    one = {name: 1 / float(np.median(taken)) for name, taken in times.items()}
    times = {"exact": [], "hnsw": []}
    truth: list[list[Hit]] = []
    for at in range(0, len(queries), BATCH):
        some = queries[at : at + BATCH]
        truth += timed("exact", exact.search_many, some, len(some))
        timed("hnsw", index.search_many, some, len(some))
    many = {name: 1 / float(np.median(taken)) for name, taken in times.items()}
    far = far_from(queries[:FAR])
    return {
        "recall": recall(truth, found),
        "far": recall(exact.search_many(far, K), index.search_many(far, K)),
        "one": one,
        "many": many,
        "disk": index.hnsw.bytes,
    }


def recall(truth: Sequence[Sequence[Hit]], found: Sequence[Sequence[Hit]]) -> float:
    """The share of the first hits in ``truth`` that are in ``found``, over all queries."""
    shared = [
        len({hit.path for hit in a} & {hit.path for hit in b}) for a, b in zip(truth, found, strict=True)
    ]
    return float(np.mean(shared)) / K


def searching(out: Path | None, exact: bool, clusters: int) -> int:
    """Bytes in memory, mapped files included, after a hundred searches (none: before the index is open)."""
    if out is not None:
        index = PhotoIndex.open(out, exact=exact)
        for query in members(QUERIES, 2 if exact else 100, clusters):
            index.search(query, K)
    return resident()


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """What ``work`` returns in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(work, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--kinds", default=KINDS)
    parser.add_argument("--work", type=Path, default=Path("/tmp/mmgem-ann"))
    parser.add_argument("--threads", type=int, default=0, help="that build; 0: one a core")
    parser.add_argument("--build-only", action="store_true")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    count, kinds = (50_000, "int8") if options.quick else (options.count, options.kinds)
    clusters = min(10_000, max(1, count // 100))
    index = options.work / f"{count}"
    index.mkdir(parents=True, exist_ok=True)
    make_index(index, count, clusters)
    assert len(read_index(index).vectors) == count
    seconds = {}
    for kind in kinds.split(","):
        seconds[kind] = make_hnsw_index(
            index, options.work / f"{count}-{kind}", HNSWConfig.parse(kind), options.threads
        )
        print(f"{kind}: {seconds[kind]:.0f} CPU seconds", flush=True)
    if options.build_only:
        return
    bare = alone(searching, None, True, clusters)
    first = options.work / f"{count}-{kinds.split(',')[0]}"
    whole = alone(searching, first, True, clusters) - bare
    print(f"{count:,} vectors x {DIM} in {clusters:,} clusters, top {K}")
    print(f"exact: on the disk {count * DIM * 4 / 1e6:.0f} MB, resident {whole / 1e6:.0f} MB")
    print(f"{'':10} recall@{K}    queries a second, hnsw : exact")
    print(
        f"{'hnsw':10} near  far   one by one               batches of {BATCH}        build    disk  resident"
    )
    for kind in kinds.split(","):
        out = options.work / f"{count}-{kind}"
        told = alone(measure, out, clusters)
        memory = alone(searching, out, False, clusters) - bare
        (e1, g1), (e2, g2) = told["one"].values(), told["many"].values()
        print(
            f"{kind:10} {told['recall']:.3f} {told['far']:.3f} {g1:7.0f} : {e1:5.1f} = {g1 / e1:5.1f}x "
            f"{g2:7.0f} : {e2:5.1f} = {g2 / e2:5.1f}x {seconds[kind]:6.0f} s {told['disk'] / 1e6:5.0f} MB "
            f"{memory / 1e6:5.0f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
