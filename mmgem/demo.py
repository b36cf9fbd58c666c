"""The demo: photos in; an index, captions, classes and searches out, shown on one page.

Every step is the library's own, in the order a user would take them; this file only chooses what to ask.
Everything lands in one folder: the page, a contact sheet, the index, and the sample photos if they are used.
"""

from __future__ import annotations

import shlex
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mmgem.api import MMGEM
from mmgem.checkpoints.download import SETS, SOURCES, base_folder, cache_folder
from mmgem.data.clips import middle_frame
from mmgem.data.images import list_images
from mmgem.errors import DownloadError, ImageError, SearchIndexError, UsageError
from mmgem.evaluate.classify import class_embeddings, classify, fill_prompt
from mmgem.report.contact_sheet import contact_sheet
from mmgem.report.data import (
    HeatmapCard,
    LabelledValue,
    Match,
    PhotoCard,
    QueryRow,
    Region,
    RegionCard,
    Report,
    SimilarRow,
)
from mmgem.report.html import write_report
from mmgem.search.clusters import cluster_photos
from mmgem.search.hits import with_match
from mmgem.search.index import IndexReport, update_index
from mmgem.search.index_files import write_lock
from mmgem.search.search import PhotoIndex
from mmgem.utils.locks import FileLock
from mmgem.utils.progress import track

SAMPLE_QUERIES = (
    "a close up of a cat",
    "a man taking a picture",
    "a person in an orange suit",
    "a red motorcycle",
    "a tall building by the water",
    "a flower",
)
"""What the sample photos are searched for."""

# fmt: off
CLASSES = (
    "cat", "dog", "horse", "bird", "person", "group of people", "child", "astronaut", "photographer",
    "flower", "tree", "forest", "mountain", "beach", "lake", "field", "street", "house", "temple", "bridge",
    "car", "motorcycle", "bicycle", "boat", "train", "airplane", "rocket", "cup of coffee", "meal", "coin",
    "starry sky", "sports game",
)
# fmt: on
"""The classes that photos are sorted into."""

_REGIONS = 16  # boxes of each photo that can be found
_REGION_QUERIES, _REGION_CARDS, _REGION_BOXES, _HEAT_CARDS = 3, 3, 4, 4
_SHOWN = 40  # photos on the wall; a large folder is sampled evenly
_MATCHES, _GUESSES, _SIMILAR_ROWS = 4, 3, 3
_CLASS_QUERIES, _GROUP_QUERIES = 4, 4
_DUPLICATE_COSINE = 0.999  # cosine above which a photo counts as the same picture
_MIN_PHOTOS_FOR_RATE = 50  # photos from which on a rate says more than the warming up


@dataclass(frozen=True)
class Demo:
    """What was made: the page, the contact sheet, the index, and a line for each photo left out."""

    page: Path
    contact_sheet: Path
    index: Path
    problems: list[str]


def run_demo(
    out: Path,
    photos: Path | None = None,
    model: str = "tiny",
    say: Callable[[str], None] = print,
    load: Callable[[str], MMGEM] = MMGEM.from_pretrained,
) -> Demo:
    """Index, search, caption and classify the folder ``photos`` (None: sample photos, fetched once).

    Writes ``report.html``, ``sheet.png`` and ``index/`` to ``out``, in place of those of an earlier demo.
    ``say`` is given a line before what takes long; ``load`` makes the model. Raises UsageError for a folder
    without photos or an ``out`` that cannot be written, ImageError if none of the photos can be read,
    DownloadError if the samples cannot be had.
    """
    began = time.perf_counter()
    if photos is not None and not list_images(photos):
        raise UsageError(f"{photos}: no photos in this folder")
    with ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(out / "lock", out, wait=True))
            folder = _sample_photos(out / "sample-photos", say) if photos is None else photos
        except OSError as error:
            raise UsageError(f"{out}: cannot be written: {error.strerror}") from error
        return _make_demo(out, folder, photos, model, say, load, began)


def _make_demo(
    out: Path,
    folder: Path,
    photos: Path | None,
    model: str,
    say: Callable[[str], None],
    load: Callable[[str], MMGEM],
    began: float,
) -> Demo:
    say(f"loading the model {model}")
    mmgem = load(model)
    index, report = _index(out / "index", folder, mmgem, model)
    photo_entries = [entry for entry in index.photos if index.moments[entry] is None]
    if not photo_entries:
        bad = report.failed
        raise ImageError(f"{folder}: none of the {len(bad)} photos could be read: {bad[0].reason}")
    speeds = [LabelledValue("photos", f"{len(photo_entries):,}")]
    if report.embedded >= _MIN_PHOTOS_FOR_RATE:
        speeds.append(LabelledValue("photos indexed a second", f"{report.embedded / report.seconds:.0f}"))

    positions = np.unique(np.linspace(0, len(photo_entries) - 1, min(_SHOWN, len(photo_entries))).round())
    shown = [photo_entries[int(i)] for i in positions]
    paths = [index.paths[i] for i in shown]
    vectors = np.asarray(index.vectors[shown])
    captioning_began = time.perf_counter()
    chunks = [paths[at : at + 8] for at in range(0, len(paths), 8)]
    captions = [
        caption
        for chunk in track(chunks, "Captioning", [len(chunk) for chunk in chunks], unit=" photos")
        for caption in mmgem.caption(chunk)
    ]
    speeds.append(
        LabelledValue("captions a second", f"{len(paths) / (time.perf_counter() - captioning_began):.1f}")
    )
    guesses = _guesses(mmgem, vectors)
    queries = list(SAMPLE_QUERIES) if photos is None else _own_queries(mmgem, index, guesses)
    captions_by_path = dict(zip(paths, captions, strict=True))
    rows = _queries(mmgem, index, queries, captions_by_path)
    similar = _similar(index, vectors, captions_by_path)
    region_rows, heatmaps = _region_searches(mmgem, index, queries)
    cards = _region_cards(mmgem, paths, captions_by_path)
    speeds.append(LabelledValue("seconds in all", f"{time.perf_counter() - began:.0f}"))

    page = Report(
        title="Sample photos" if photos is None else "Your photos",
        lead="One small model embeds, searches, captions and classifies these photos on the CPU. No tags, no "
        "file names, no network: what you see comes from the pixels alone.",
        figures=speeds,
        details=_details(mmgem, model, len(photo_entries), len(paths), len(report.failed)),
        queries=rows,
        similar=similar,
        region_queries=region_rows,
        regions=cards,
        heatmaps=heatmaps,
        photos=[
            PhotoCard(path, caption, guess, path.name)
            for path, caption, guess in zip(paths, captions, guesses, strict=True)
        ],
        commands=_commands(out, photos, model, queries[0]),
        note=_credits() if photos is None else "",
    )
    result = Demo(
        out / "report.html",
        out / "sheet.png",
        out / "index",
        [f"{folder / bad.path}: {bad.explanation}" for bad in report.failed],
    )
    result.problems.extend(write_report(result.page, page))
    contact_sheet(result.contact_sheet, [*rows, *similar])
    return result


def _sample_photos(folder: Path, say: Callable[[str], None]) -> Path:
    """Put the sample photos into ``folder`` and return it."""
    try:
        sources = []
        for name in SETS["photos"]:
            if not cache_folder(name).is_dir():
                say(f"fetching sample photos: {SOURCES[name].requirement}")
            sources.append(base_folder(name))
    except DownloadError as error:
        raise DownloadError(f"{error}; to go without the samples, give your own: --photos DIR") from error
    folder.mkdir(exist_ok=True)
    for source in sources:
        for picture in source.iterdir():
            shutil.copy2(picture, folder / picture.name)
    return folder


def _index(out: Path, folder: Path, mmgem: MMGEM, model: str) -> tuple[PhotoIndex, IndexReport]:
    """The index ``out`` of ``folder``, up to date; one of other photos or another model is replaced."""
    with suppress(SearchIndexError):
        old = PhotoIndex.open(out)
        if (old.fingerprint, old.folder, old.regions) != (mmgem.fingerprint, folder.resolve(), _REGIONS):
            with closing(write_lock(out)):
                shutil.rmtree(out)
    report = update_index(
        out,
        folder,
        lambda: mmgem,
        mmgem.fingerprint,
        model=model,
        regions=_REGIONS,
        progress=partial(track, label="Indexing", unit=" photos"),
    )
    return PhotoIndex.open(out), report


def _guesses(mmgem: MMGEM, vectors: np.ndarray) -> list[list[tuple[str, float]]]:
    """The likeliest classes of each photo of (n, D) ``vectors``, with their probabilities."""
    classes = class_embeddings(mmgem.embed_texts, CLASSES)
    shares = classify(vectors, classes, mmgem.temperature)
    best = np.argsort(-shares, axis=1)[:, :_GUESSES]
    return [[(CLASSES[i], float(row[i])) for i in top] for row, top in zip(shares, best, strict=True)]


def _queries(
    mmgem: MMGEM, index: PhotoIndex, queries: Sequence[str], captions: dict[Path, str]
) -> list[QueryRow]:
    """A row of results for each text."""
    vectors = mmgem.embed_queries(queries)
    rows = []
    for query, vector, hits in zip(queries, vectors, index.search_many(vectors, _MATCHES), strict=True):
        matches = [
            Match(
                hit.path,
                hit.score,
                caption=captions.get(hit.path, ""),
                match=hit.match,
                moment=hit.moment,
            )
            for hit in with_match(hits, mmgem.calibration, vector, len(index.photos))
        ]
        rows.append(QueryRow(query, matches))
    return rows


def _similar(index: PhotoIndex, vectors: np.ndarray, captions: dict[Path, str]) -> list[SimilarRow]:
    """Rows for the photos (keys of ``captions``, with their ``vectors``) that have the nearest neighbours."""
    rows = []
    for (path, caption), hits in zip(captions.items(), index.search_many(vectors, _MATCHES + 2), strict=True):
        near = [
            Match(hit.path, hit.score, caption=captions.get(hit.path, ""), moment=hit.moment)
            for hit in hits
            if hit.path != path and hit.score < _DUPLICATE_COSINE
        ]
        if near:
            rows.append(SimilarRow(path, near[:_MATCHES], caption=caption))
    rows.sort(key=lambda row: -row.matches[0].score)
    chosen: list[SimilarRow] = []
    for row in rows:
        # Two photos that are each other's nearest make one row.
        if len(chosen) < _SIMILAR_ROWS and row.matches[0].image not in [other.image for other in chosen]:
            chosen.append(row)
    return chosen


def _region_searches(
    mmgem: MMGEM, index: PhotoIndex, queries: Sequence[str]
) -> tuple[list[QueryRow], list[HeatmapCard]]:
    """The best boxes for the texts that find a photo most clearly, and the heat maps of those photos."""
    vectors = mmgem.embed_queries(queries, regions=True)
    best = [hits[0] for hits in index.search_many(vectors, 1)]
    clear = sorted(range(len(queries)), key=lambda i: -best[i].score)
    rows = []
    for i in clear[:_REGION_QUERIES]:
        hits = index.search_regions(vectors[i], _MATCHES)
        rows.append(QueryRow(queries[i], [Match(hit.path, hit.score, hit.box) for hit in hits]))
    heatmaps = []
    for i in clear[:_HEAT_CARDS]:
        moment = best[i].moment
        picture = best[i].path if moment is None else middle_frame(best[i].path, moment)
        heatmaps.append(HeatmapCard(picture, queries[i], mmgem.heatmap(picture, [queries[i]])[0]))
    return rows, heatmaps


def _region_cards(mmgem: MMGEM, paths: Sequence[Path], captions: dict[Path, str]) -> list[RegionCard]:
    """A few photos with their most telling boxes, each described."""
    cards = []
    for path in paths[:: max(1, len(paths) // _REGION_CARDS)][:_REGION_CARDS]:
        boxes, _ = mmgem.find_regions([path], _REGION_BOXES)[0]
        captions_of_boxes = mmgem.caption([path] * len(boxes), boxes)
        regions = [Region(box, text) for box, text in zip(boxes, captions_of_boxes, strict=True)]
        cards.append(RegionCard(path, regions, captions[path]))
    return cards


def _own_queries(
    mmgem: MMGEM, index: PhotoIndex, guesses: Sequence[Sequence[tuple[str, float]]]
) -> list[str]:
    """What photos of one's own are searched for: the classes that ``guesses`` say they show most of, and what
    the model says of the largest groups that look alike."""
    shares: Counter[str] = Counter()
    for likeliest in guesses:
        shares.update(dict(likeliest))
    groups = cluster_photos(index, mmgem, _GROUP_QUERIES)
    said = [group.name for group in groups if any(map(str.isalpha, group.name))]
    classes = [fill_prompt("a {}", name) for name, _ in shares.most_common(_CLASS_QUERIES)]
    return list(dict.fromkeys([*classes, *said]))


def _details(mmgem: MMGEM, model: str, indexed: int, shown: int, failed: int) -> list[LabelledValue]:
    details = [
        LabelledValue("model", Path(model).name),
        LabelledValue("embedding", f"{mmgem.dim} numbers a photo or text"),
        LabelledValue("classes", f"{len(CLASSES)}, from {CLASSES[0]} to {CLASSES[-1]}"),
    ]
    if shown < indexed:
        details.append(LabelledValue("shown below", f"{shown} of {indexed:,} photos, evenly spread"))
    if failed:
        details.append(LabelledValue("photos not readable", f"{failed:,}, left out"))
    return details


def _commands(out: Path, photos: Path | None, model: str, query: str) -> list[str]:
    """The commands of this page, without folders that are nobody's business."""

    def short(path: Path) -> str:
        return shlex.quote(path.name if path.is_absolute() else str(path))

    options = [] if photos is None else ["--photos", short(photos)]
    options += ["--out", short(out)]
    if model != "tiny":
        options += ["--model", short(Path(model))]
    return [
        " ".join(["mmgem demo", *options]),
        f"mmgem search {short(out)}/index {shlex.quote(query)}",
    ]


def _credits() -> str:
    sources = [SOURCES[name] for name in SETS["photos"]]
    return "Sample photos from " + "; ".join(f"{s.requirement} ({s.licence})" for s in sources) + "."
