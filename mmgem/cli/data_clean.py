"""``mmgem data check``, ``filter``, ``recaption`` and ``caption-labels``: noisy pairs made clean."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmgem.cli.inputs import DeviceOption, ModelOption, PrecisionOption, load_model
from mmgem.cli.output import JsonOption, note, note_skipped, print_json
from mmgem.errors import UsageError

if TYPE_CHECKING:
    from mmgem.clean.filter import CleanReport

DataArgument = Annotated[
    Path, typer.Argument(metavar="DATA", help="Any dataset mmgem reads, or shards (tar, parquet).")
]
SplitOption = Annotated[str | None, typer.Option("--split", metavar="S", help="Only this split of the data.")]
OutOption = Annotated[
    Path, typer.Option("--out", "-o", metavar="FILE", help="A .jsonl file; of shards, a folder.")
]
KeepOption = Annotated[
    float | None, typer.Option("--keep", metavar="SHARE", help="Keep this share of the pairs, the best.")
]
MinCosineOption = Annotated[
    float | None, typer.Option("--min-cosine", metavar="C", help="Keep pairs of at least this cosine.")
]


def check(
    data: DataArgument,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Folder for report.html and findings.jsonl."),
    ] = None,
    split: SplitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find what is wrong with a data set, without a model.

    Copies of photos (same bytes, and near: resized, compressed again, cropped by up to a tenth), photos that
    cannot be read or have no caption, captions that are too short, under many photos, or in another language
    than most. Each photo is decoded once. Stopped, the same command goes on. With --json: {"photos",
    "captions", "counts", "across_splits", "language", "examples", "problems"}.
    """
    from mmgem.clean.check import KINDS, check_pairs
    from mmgem.clean.pairs import PairData

    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{out}: {error.strerror}") from error
    report = check_pairs(PairData(data, split), out)
    if report.resumed:
        note(f"went on behind {report.resumed} photos")
    note_skipped(report.problems)
    if out is not None:
        from mmgem.clean.page import write_check_page

        command = f"mmgem data check {shlex.quote(data.name)} --out {shlex.quote(out.name)}"
        write_check_page(out / "report.html", data.name, report, command)
    if as_json:
        examples = {kind: [asdict(finding) for finding in found] for kind, found in report.examples.items()}
        counts = {"photos": report.photos, "captions": report.captions, "counts": report.counts}
        more = {"across_splits": report.across_splits, "language": report.language}
        print_json({**counts, **more, "examples": examples, "problems": report.problems})
        return
    print(f"{report.photos} photos, {report.captions} captions")
    for kind, count in report.counts.items():
        print(f"{count}\t{KINDS[kind]}")
    print(f"{report.across_splits}\tgroups of copies across splits")
    if out is not None:
        print(f"{out / 'report.html'}")


def filter_(
    data: DataArgument,
    out: OutOption,
    model: ModelOption = "tiny",
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    split: SplitOption = None,
    keep: KeepOption = None,
    min_cosine: MinCosineOption = None,
    as_json: JsonOption = False,
) -> None:
    """Leave out captions that do not fit their photos, as a model sees it.

    A pair is scored by its cosine and by how much likelier the photo makes the caption. Where to cut is told
    by the data: by what its own captions score beside photos of others. What went is listed in
    FILE.dropped.jsonl with the reason. Scores are kept beside FILE: stopped, the same command goes on, and
    another threshold costs nothing. With --json: {"pairs", "kept", "photos", "records", "rule",
    "wrong_share", "dropped_file"}.
    """
    from mmgem.clean.filter import filter_pairs

    load = partial(load_model, model, device, precision)
    report = filter_pairs(data, model, out, split, keep, min_cosine, load)
    _print(report, out, as_json)


def recaption(
    data: DataArgument,
    out: OutOption,
    model: ModelOption = "tiny",
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    split: SplitOption = None,
    keep_both: Annotated[
        bool, typer.Option("--keep-both", help="A caption of the model's beside those that fit, too.")
    ] = False,
    keep: KeepOption = None,
    min_cosine: MinCosineOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put the model's captions where the given ones do not fit, if its own do.

    As mmgem data filter, and a photo that loses a caption or has none gets one of the model's, which has to
    pass the same threshold. Stopped, the same command goes on. With --json: as of filter, and "added".
    """
    from mmgem.clean.recaption import recaption_pairs

    load = partial(load_model, model, device, precision)
    report = recaption_pairs(data, model, out, split, keep_both, keep, min_cosine, load)
    _print(report, out, as_json)


def caption_labels(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Any dataset of photos with labels.")],
    texts: Annotated[
        list[Path],
        typer.Option("--texts", metavar="FILE", help="Captions of any photos: .jsonl, .txt, also .gz."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="A .jsonl file.")],
    model: ModelOption = "tiny",
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels", metavar="FILE", help="Names of classes and of the kinds above them (labels.jsonl)."
        ),
    ] = None,
    split: SplitOption = None,
    per_photo: Annotated[int, typer.Option("--per-photo", min=1, metavar="N", help="Captions a photo.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """Give photos that have a label only captions that say it: the texts of --texts that fit best.

    Of the texts that say the label (5 to 13 words) each photo gets those nearest by the model. Where few say
    it, those that say a kind above it, with the label in its place; where none fits, "A close up of a LABEL."
    Texts of another split than train are left out. With --json: {"photos", "captioned", "names", "said",
    "by_kind", "unsaid": [names], "problems"}.
    """
    from mmgem.clean.label_sentences import label_sentences
    from mmgem.clean.output import prepare_jsonl
    from mmgem.data.labels import read_labels
    from mmgem.data.readers import load_dataset
    from mmgem.data.records import write_jsonl
    from mmgem.data.text_corpus import read_texts

    prepare_jsonl(out, data)
    records = load_dataset(data, split=split)
    said = [text for text, first in read_texts(texts, "train").items() if first]
    kinds = None if labels is None else read_labels(labels)
    found = label_sentences(records, said, load_model(model, device, precision), kinds, per_photo)
    write_jsonl(out, found.records)
    note_skipped(found.problems)
    names = found.said + found.by_kind + len(found.unsaid)
    if as_json:
        counts = {"photos": len(records), "captioned": found.captioned, "names": names}
        more = {"said": found.said, "by_kind": found.by_kind, "unsaid": found.unsaid}
        print_json(counts | more | {"problems": found.problems})
        return
    print(f"{out}: {found.captioned} of {len(records)} photos have captions now")
    note(
        f"{names} labels: texts say {found.said}, and a kind above {found.by_kind}; "
        f"none says {len(found.unsaid)}"
    )


def _print(report: CleanReport, out: Path, as_json: bool) -> None:
    note_skipped(report.problems)
    if report.resumed:
        note(f"{report.resumed} photos had scores already")
    if as_json:
        names = ("pairs", "kept", "added", "photos", "records", "rule", "wrong_share")
        print_json(
            {name: getattr(report, name) for name in names} | {"dropped_file": str(report.dropped_file)}
        )
        return
    added = f", {report.added} of the model's added" if report.added else ""
    share = "" if report.wrong_share is None else f"; the mixture takes {report.wrong_share:.1%} for wrong"
    print(
        f"{out}: {report.kept} of {report.pairs} captions{added}, {report.records} of {report.photos} photos"
    )
    note(f"kept: {report.rule}{share}; the others are in {report.dropped_file}")
