"""The page that shows what a check found."""

from __future__ import annotations

from pathlib import Path

from mmgem.clean.check import KINDS, CheckReport, Finding
from mmgem.report.data import FindingRow, FindingSection, LabelledValue, PhotoCard, Report
from mmgem.report.html import write_report

_TITLES = {
    "unreadable": "Unreadable",
    "same": "Same bytes",
    "near": "Near copies",
    "empty": "No caption",
    "short": "Too short",
    "repeated": "Repeated captions",
    "language": "Other language",
}


def write_check_page(path: Path, name: str, report: CheckReport, command: str) -> None:
    """Write ``report`` on the data called ``name`` to the HTML file ``path``; the photos of its examples are
    the small pictures that the check made. Raises ``UsageError`` if it cannot be written."""
    sections = [
        FindingSection(
            kind, _TITLES[kind], report.counts[kind], [_row(f, report) for f in report.examples[kind]]
        )
        for kind in KINDS
    ]
    details = [LabelledValue(what, str(report.counts[kind])) for kind, what in KINDS.items()]
    details.append(LabelledValue("groups of copies across splits", str(report.across_splits)))
    details.append(LabelledValue("language of most captions", report.language or "none"))
    figures = [
        LabelledValue("photos", f"{report.photos:,}"),
        LabelledValue("captions", f"{report.captions:,}"),
        LabelledValue("findings", f"{sum(report.counts.values()):,}"),
    ]
    lead = f"What is wrong with {name}, told without a model. All findings are in findings.jsonl."
    note = "; ".join(report.problems[:8])
    write_report(
        path,
        Report("Data check", lead, figures, details, findings=sections, commands=[command], note=note),
    )


def _row(finding: Finding, report: CheckReport) -> FindingRow:
    photos = [
        PhotoCard(report.pictures[name], finding.caption, name=Path(name).name)
        for name in finding.photos
        if name in report.pictures
    ]
    parts = [
        "" if photos else Path(finding.photos[0]).name,
        f"“{finding.caption}”" if finding.caption else "",
        finding.reason,
        f"{finding.count} photos" if finding.count > 1 else "",
    ]
    return FindingRow(", ".join(filter(None, parts)), photos)
