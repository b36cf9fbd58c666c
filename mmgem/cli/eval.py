"""``mmgem eval``: the figures of a model on a test set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from mmgem.cli.inputs import BeamsOption, DeviceOption, ModelOption, PrecisionOption, load_model, map_photos
from mmgem.cli.output import JsonOption, note, print_json
from mmgem.errors import DataError, UsageError
from mmgem.inference.caption_options import CAPTION_DEFAULTS

if TYPE_CHECKING:
    import numpy as np

    from mmgem.api import MMGEM
    from mmgem.data.records import Media, Record

_TASKS = ("retrieval", "caption", "classify", "region", "place", "longtext")
_REGIONS_A_PHOTO = 20  # regions of each photo, as in the index of the docs


class EvalCommand(TyperCommand):
    """``--captions FILE`` beside the flag ``--captions``: typer's options have a value always or never."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line ``args`` with ``--captions FILE`` as ``--captions-file FILE``."""
        rewritten: list[str] = []
        for number, argument in enumerate(args):
            following = args[number + 1] if number + 1 < len(args) else "-"
            if argument.startswith("--captions="):
                argument = argument.replace("--captions", "--captions-file", 1)
            elif argument == "--captions" and not following.startswith("-") and following not in _TASKS:
                argument = "--captions-file"
            rewritten.append(argument)
        return super().parse_args(ctx, rewritten)


def evaluate(
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="retrieval, caption, classify, region, place, longtext.")
    ],
    model: ModelOption = "tiny",
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    data: Annotated[Path | None, typer.Option(metavar="D", help="Any dataset mmgem reads.")] = None,
    split: Annotated[str | None, typer.Option(metavar="S", help="Only this split of --data.")] = None,
    preset: Annotated[str | None, typer.Option(metavar="NAME", help="A standard test set; see docs.")] = None,
    root: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the preset's files are.")] = None,
    beams: BeamsOption = CAPTION_DEFAULTS.beams,
    rerank: Annotated[bool, typer.Option("--rerank", help="retrieval: assess the best.")] = False,
    captions: Annotated[
        bool, typer.Option("--captions", help="region: captions too. With a FILE, for retrieval: see below.")
    ] = False,
    captions_file: Annotated[
        Path | None,
        typer.Option("--captions-file", metavar="FILE", help="retrieval: --captions FILE.", hidden=True),
    ] = None,
    language: Annotated[
        str | None, typer.Option(metavar="XX", help="retrieval: captions in that language, like de.")
    ] = None,
    pointing: Annotated[bool, typer.Option("--pointing", help="region: heat maps too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure a model on a test set: --data D, or --preset NAME --root DIR. All figures are percent.

    Photos and clips that cannot be read are left out, which is noted, and "skipped" counts them. With --json:
    retrieval {"i2t": {"R@1", "R@5", "R@10"}, "t2i": {...}, "images", "texts", "skipped"}, with --rerank
    "cosine", the same without, and "seconds_per_query", with --language "language";
    caption {"BLEU@1" to "BLEU@4", "ROUGE_L", "CIDEr", "images", "skipped"};
    classify {"top1", "top5", "mean_per_class", "images", "skipped"};
    region {"r2t": {...}, "t2r": {...}, "regions", "texts", "skipped"}, with --captions those of caption, with
    --pointing {"pointing", "chance"};
    place (of data made by mosaic --twins) {"place", "questions"};
    longtext (all captions of a photo as one text) as retrieval, with "shortened", the texts that had to lose
    sentences, and "ways": "mean" of sentences, "joined" as one text, "first" sentence alone.

    --language de takes the captions in German of the photos that have any, from the data, or with --captions
    FILE from a JSON-lines file of {"image": "1.jpg", "en": "...", "de": "..."} (also .gz).
    """
    if task not in _TASKS:
        raise UsageError(f"no eval task {task!r}; there are {', '.join(_TASKS)}")
    for option, requested, option_task in (
        ("rerank", rerank, "retrieval"),
        ("captions", captions, "region"),
        ("pointing", pointing, "region"),
        ("captions FILE", captions_file is not None, "retrieval"),
        ("language", language is not None, "retrieval"),
    ):
        if requested and task != option_task:
            raise UsageError(f"--{option} is for eval {option_task}")
    if captions_file is not None and language is None:
        raise UsageError("--captions FILE needs --language")
    records, classes = _load_records(task, data, split, preset, root, captions_file, language)
    mmgem = load_model(model, device, precision)
    skipped: list[tuple[Path | Media, str]] = []
    if task == "retrieval":
        scores = _retrieval(mmgem, records, rerank, skipped)
        scores |= {} if language is None else {"language": language}
    elif task == "caption":
        scores = _captions(mmgem, records, beams, skipped, by_domain=preset == "nocaps")
    elif task == "classify":
        scores = _classification(mmgem, records, classes, skipped)
    elif task == "longtext":
        scores = _long_texts(mmgem, records, skipped)
    elif task == "place":
        scores = _places(mmgem, records, skipped)
    else:
        scores = _regions(mmgem, records, beams if captions else 0, pointing, skipped)
    if skipped:
        note(f"{len(skipped)} of {len(records)} photos left out: not comparable with figures on all of them")
    if as_json:
        print_json({**scores, "skipped": len(skipped)})
    else:
        _show(scores)


def _load_records(
    task: str,
    data: Path | None,
    split: str | None,
    preset: str | None,
    root: Path | None,
    captions_file: Path | None = None,
    language: str | None = None,
) -> tuple[list[Record], dict[str, str]]:
    """The records the task can use, and the class name of each label."""
    from mmgem.data.readers import load_dataset
    from mmgem.evaluate.presets import PRESETS, load_preset, preset_classes, preset_mismatch

    if (data is None) == (preset is None):
        raise UsageError("give --data or --preset, one of the two")
    if preset is not None:
        if preset not in PRESETS:
            raise UsageError(f"no preset {preset!r}; there are {', '.join(PRESETS)}")
        if root is None or split is not None:
            raise UsageError("--preset needs --root DIR, and has a split of its own")
        if PRESETS[preset].task != task:
            raise UsageError(f"{preset} is a test set for mmgem eval {PRESETS[preset].task}")
        records = load_preset(preset, root)
        if warning := preset_mismatch(preset, records):
            note(f"warning: {warning}")
        if language is not None:
            records = _translated(records, captions_file, language)
        return records, preset_classes(preset, root) if task == "classify" else {}
    assert data is not None
    everything = load_dataset(data, split=split)
    if language is not None:
        return _translated(everything, captions_file, language), {}
    field = {"classify": "label", "region": "regions", "place": "regions"}.get(task, "captions")
    records = [record for record in everything if getattr(record, field)]
    if not records:
        raise DataError(f"{data}: no {field} in it, which eval {task} needs")
    if left_out := len(everything) - len(records):
        note(f"{left_out} of {len(everything)} records have no {field} and are left out")
    return records, {label: label for label in sorted({str(record.label) for record in records})}


def _translated(records: list[Record], captions_file: Path | None, language: str) -> list[Record]:
    """The records that have captions in ``language``, with these."""
    from mmgem.data.readers import add_captions, in_language

    selected = in_language(add_captions(records, captions_file) if captions_file else records, language)
    if left_out := len(records) - len(selected):
        note(f"{left_out} of {len(records)} records have no captions in {language!r} and are left out")
    return selected


def _retrieval(
    mmgem: MMGEM, records: list[Record], rerank: bool, skipped: list[tuple[Path | Media, str]]
) -> dict[str, Any]:
    import numpy as np

    from mmgem.evaluate.retrieval import retrieval_scores

    readable, vectors = _results(records, mmgem.embed_images, "Embedding", skipped)
    image_of_caption = np.repeat(np.arange(len(readable)), [len(record.captions) for record in readable])
    captions = [caption for record in readable for caption in record.captions]
    images, texts = np.stack(vectors), mmgem.embed_texts(captions)
    plain = dict(retrieval_scores(images, texts, image_of_caption))
    return _reranked(mmgem, images, texts, captions, image_of_caption, plain) if rerank else plain


def _reranked(
    mmgem: MMGEM,
    images: np.ndarray,
    texts: np.ndarray,
    captions: list[str],
    image_of_caption: np.ndarray,
    plain: dict[str, Any],
) -> dict[str, Any]:
    """The same after a second look at the best, and what one look costs."""
    import time

    import numpy as np

    from mmgem.evaluate.retrieval import reranked_scores
    from mmgem.search.rerank import PAIR_BATCH_SIZE, RerankOptions, log_probs
    from mmgem.utils.progress import track

    options, ids, end = RerankOptions(), mmgem.tokenizer.encode_all(captions), mmgem.tokenizer.end
    seconds = 0.0

    def assess(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        nonlocal seconds
        began = time.perf_counter()
        order = np.argsort([len(ids[column]) for column in columns], kind="stable")  # like lengths pack
        chunks = [order[at : at + PAIR_BATCH_SIZE] for at in range(0, len(order), PAIR_BATCH_SIZE)]
        given = np.empty(len(order), np.float32)
        for c in track(chunks, "Assessing", sizes=[len(c) for c in chunks], unit=" pairs"):
            given[c] = log_probs(
                mmgem.network, images[rows[c]], [ids[i] for i in columns[c]], end, options.embedding_norm
            )
        seconds = options.candidates * (time.perf_counter() - began) / len(rows)
        # The images a text was assessed for are those nearest to it, but for few that it is nearest to.
        usual = np.bincount(columns, given) / np.maximum(1, np.bincount(columns))
        cosines = (images[rows] * texts[columns]).sum(1)
        return options.scores(cosines, given, usual[columns], mmgem.temperature)

    scores = reranked_scores(images, texts, image_of_caption, assess, options.candidates)
    without = {way: plain[way] for way in ("i2t", "t2i")}
    return {**scores, "cosine": without, "seconds_per_query": seconds}


def _captions(
    mmgem: MMGEM, records: list[Record], beams: int, skipped: list[tuple[Path | Media, str]], by_domain: bool
) -> dict[str, Any]:
    from mmgem.evaluate.captions import caption_scores, grouped_caption_scores

    readable, captions = _results(
        records, lambda batch: mmgem.caption(batch, beams=beams), "Captioning", skipped
    )
    references = [list(record.captions) for record in readable]
    if by_domain:
        return dict(
            grouped_caption_scores(captions, references, [record.meta["domain"] for record in readable])
        )
    return dict(caption_scores(captions, references))


def _classification(
    mmgem: MMGEM, records: list[Record], classes: dict[str, str], skipped: list[tuple[Path | Media, str]]
) -> dict[str, Any]:
    import numpy as np

    from mmgem.evaluate.classify import class_embeddings, classification_scores

    prototypes = class_embeddings(mmgem.embed_texts, list(classes.values()))
    readable, vectors = _results(records, mmgem.embed_images, "Embedding", skipped)
    rows = {label: row for row, label in enumerate(classes)}
    labels = [rows[str(record.label)] for record in readable]
    return dict(classification_scores(np.stack(vectors), prototypes, labels))


def _long_texts(
    mmgem: MMGEM, records: list[Record], skipped: list[tuple[Path | Media, str]]
) -> dict[str, Any]:
    """The model's own way of reading long texts, and beside it the others."""
    import numpy as np

    from mmgem.data.sentences import split_sentences
    from mmgem.data.tokens import Tokenizer
    from mmgem.evaluate.retrieval import retrieval_scores
    from mmgem.inference.texts import embed_texts

    readable, vectors = _results(records, mmgem.embed_images, "Embedding", skipped)
    images, image_of_text = np.stack(vectors), np.arange(len(readable))
    sentences = [[s for caption in record.captions for s in split_sentences(caption)] for record in readable]

    def read(way: Literal["mean", "joined"]) -> dict[str, Any]:
        tokenizer = Tokenizer(mmgem.tokenizer.hf, replace(mmgem.tokenizer.prep, long_text=way))
        texts, lost = zip(*map(tokenizer.join, sentences), strict=True)
        rows = embed_texts(mmgem.network, tokenizer, texts, 4 * mmgem.batch)
        return {**retrieval_scores(images, rows, image_of_text), "shortened": sum(n > 0 for n in lost)}

    own_way = mmgem.tokenizer.prep.long_text
    ways: dict[str, dict[str, Any]] = {own_way: read(own_way)}
    other: Literal["mean", "joined"] = "joined" if own_way == "mean" else "mean"
    try:
        ways[other] = read(other)
    except DataError as error:  # one sentence may be more than can be read in one piece
        note(f"left out the way {other!r}: {error}")
    first = mmgem.embed_texts([own_sentences[0] for own_sentences in sentences])
    ways["first"] = dict(retrieval_scores(images, first, image_of_text))
    shown = {way: {"i2t": scores["i2t"], "t2i": scores["t2i"]} for way, scores in ways.items()}
    return {**ways[own_way], "ways": shown}


def _regions(
    mmgem: MMGEM, records: list[Record], beams: int, with_heat: bool, skipped: list[tuple[Path | Media, str]]
) -> dict[str, Any]:
    """Boxes of one photo go through the model together; what is the same captions is the same thing."""
    import numpy as np

    from mmgem.data.images import image_size
    from mmgem.evaluate.captions import caption_scores
    from mmgem.evaluate.regions import pointing, region_scores

    described = {r.image: [region for region in r.regions if region.captions] for r in records}
    records = [record for record in records if described[record.image]]

    def each_box(batch: list[Path], work: Any) -> list[Any]:
        boxes = [region.box for photo in batch for region in described[photo]]
        box_results = work([photo for photo in batch for _ in described[photo]], boxes)
        ends = np.cumsum([len(described[photo]) for photo in batch])
        return [box_results[end - len(described[p]) : end] for p, end in zip(batch, ends, strict=True)]

    def see(photos: list[Path], boxes: list[Any]) -> list[tuple[np.ndarray, str]]:
        if not beams:
            return [(vector, "") for vector in mmgem.embed_images(photos, boxes)]
        return list(zip(*mmgem.describe(photos, boxes, beams=beams), strict=True))

    label = "Captioning boxes" if beams else "Embedding boxes"
    readable, results = _results(records, lambda batch: each_box(batch, see), label, skipped)
    regions = [region for record in readable for region in described[record.image]]
    vectors, captions = zip(*(pair for photo_results in results for pair in photo_results), strict=True)
    caption_ids: dict[tuple[str, ...], int] = {}
    caption_of_region = [caption_ids.setdefault(region.captions, len(caption_ids)) for region in regions]
    pairs = [(caption_id, text) for same, caption_id in caption_ids.items() for text in same]
    texts = mmgem.embed_texts([text for _, text in pairs])
    scores: dict[str, Any] = dict(
        region_scores(np.stack(vectors), texts, caption_of_region, [caption_id for caption_id, _ in pairs])
    )
    if beams:
        captioned = caption_scores(list(captions), [list(region.captions) for region in regions])
        scores |= {name: value for name, value in captioned.items() if name != "images"}
    if with_heat:
        _, maps = _results(
            readable,
            lambda batch: [mmgem.heatmap(p, [r.captions[0] for r in described[p]]) for p in batch],
            "Heat maps",
            skipped,
        )
        sizes = [image_size(record.image) for record in readable for _ in described[record.image]]
        scores |= pointing(np.concatenate(maps), [r.box for r in regions], sizes)
    return scores


def _places(mmgem: MMGEM, records: list[Record], skipped: list[tuple[Path | Media, str]]) -> dict[str, Any]:
    """Every other record is the twin of the one before: the same captions at other places."""
    import numpy as np

    from mmgem.data.images import image_size
    from mmgem.evaluate.regions import place_scores, quarter
    from mmgem.search.spatial_filter import SpatialFilter, split_query

    readable, results = _results(
        records, lambda batch: mmgem.find_regions(batch, _REGIONS_A_PHOTO), "Finding regions", skipped
    )
    number = {record.image: i for i, record in enumerate(readable)}
    sizes = [image_size(record.image) for record in readable]
    regions_of_image = [
        (v, np.array(boxes) / np.array(size * 2)) for (boxes, v), size in zip(results, sizes, strict=True)
    ]
    questions: list[tuple[str, SpatialFilter, int, int]] = []
    for one, two in zip(records[::2], records[1::2], strict=False):
        if one.image not in number or two.image not in number:
            continue
        a, b = number[one.image], number[two.image]
        other_quarters = {r.captions: quarter(r.box, sizes[b]) for r in two.regions if r.captions}
        for region in one.regions:
            quarter_in_first, other = quarter(region.box, sizes[a]), other_quarters.get(region.captions)
            if other is None or quarter_in_first == other:
                continue
            for words, right, wrong in ((quarter_in_first, a, b), (other, b, a)):
                text, where = split_query(f"{region.captions[0].rstrip(' .')} at the {words}")
                questions.append((text, where or SpatialFilter(), right, wrong))
    texts = mmgem.embed_texts([text for text, *_ in questions])
    return dict(
        place_scores([(t, *rest) for t, (_, *rest) in zip(texts, questions, strict=True)], regions_of_image)
    )


def _results(
    records: list[Record], work: Any, label: str, skipped: list[tuple[Path | Media, str]]
) -> tuple[list[Record], list[Any]]:
    """The records whose photo or clip could be read, and their results."""
    results = list(map_photos([record.source for record in records], work, label, skipped, batch=32))
    skipped_photos = {photo for photo, _ in skipped}
    readable = [record for record in records if record.source not in skipped_photos]
    return readable, [result for _, result in results]


def _show(scores: dict[str, Any], indent: str = "") -> None:
    for name, value in scores.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            _show(value, indent + "  ")
        else:
            print(
                f"{indent}{name:<{16 - len(indent)}}{f'{value:.2f}' if isinstance(value, float) else value}"
            )
