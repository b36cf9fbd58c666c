"""Files of any kind that holds text, as lines that know where they are from.

Text and Markdown as they are; of HTML what is shown; of PDF the text of its pages (``pip install
'mmgem[pdf]'``); of source code its comments and docstrings (:mod:`~mmgem.self_retrieval.code_comments`).
"""

from __future__ import annotations

from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from mmgem.errors import DataError, UsageError
from mmgem.self_retrieval.code_comments import CODE, code_lines
from mmgem.self_retrieval.documents import MARKDOWN, SUFFIXES, document_title, plain_line, split_document
from mmgem.utils.text_files import read_text

HTML = (".html", ".htm", ".xhtml")
PDF = (".pdf",)
INDEXED = (*SUFFIXES, *HTML, *PDF, *CODE)
"""Suffixes of the files that are read."""

Line = tuple[int, str]
"""The number of a line of a file, or of a page of a PDF, from 1, and a line of its text."""

_BLOCKS = frozenset(
    (
        *("address", "article", "aside", "blockquote", "body", "br", "center", "dd", "details", "div", "dl"),
        *("dt", "fieldset", "figcaption", "figure", "footer", "form", "header", "hr", "li", "main", "nav"),
        *("ol", "option", "p", "pre", "section", "summary", "table", "tbody", "td", "tfoot", "th", "thead"),
        *("tr", "ul"),
    )
)
_UNSEEN = frozenset(("script", "style", "template", "noscript", "svg", "head"))
_HEADINGS = {f"h{n}": "#" * n for n in range(1, 7)}


@dataclass(frozen=True)
class SourceText:
    """The title, the passages, and the lines they are made of, without marks."""

    title: str
    passages: list[str]
    lines: list[Line]


def read_source(path: Path) -> SourceText:
    """Read a file of one of the suffixes ``INDEXED``.

    Raises ``DataError`` or ``UsageError``, naming the file, if it cannot be read, has no text or needs an
    extra.
    """
    suffix = path.suffix.lower()
    name = ""
    if suffix in PDF:
        lines = _pdf_lines(path)
    else:
        text = read_text(path)
        if "\0" in text:
            raise DataError(f"{path}: not text, it holds zero bytes")
        if suffix in HTML:
            name, lines = _html_lines(text)
        elif suffix in CODE:
            name, lines = path.name, code_lines(text, suffix)
        else:
            lines = list(enumerate(text.splitlines(), 1))
    markdown = suffix in MARKDOWN
    title, passages = split_document("\n".join(line for _, line in lines), markdown)
    if not passages:
        raise DataError(f"{path}: no text")
    if markdown:
        lines = [(n, plain_line(line)) for n, line in lines]
    title = name if suffix in CODE else title or name
    return SourceText(document_title(title, path), passages, lines)


class _HTMLText(HTMLParser):
    """Shown text as lines, an empty one where a block begins or ends, ``#`` before headings."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self.lines: list[Line] = []
        self._unseen: list[str] = []
        self._in_title = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "title":
            self._in_title = True
        elif tag in _UNSEEN:
            self._unseen.append(tag)
        elif tag in _HEADINGS:
            self._end_block()
            self.lines.append((self.getpos()[0], f"{_HEADINGS[tag]} "))
        elif tag in _BLOCKS:
            if tag == "body":  # a head that was not closed
                self._unseen.clear()
            self._end_block()

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        elif tag in self._unseen:
            del self._unseen[self._unseen.index(tag) :]
        elif tag in _BLOCKS or tag in _HEADINGS:
            self._end_block()

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
        elif not self._unseen:
            first, *others = data.split("\n")
            place = self.getpos()[0]
            if self.lines and self.lines[-1][1]:
                begun, before = self.lines[-1]
                heading = before.startswith("#")
                self.lines[-1] = begun, before + first
                if heading:  # on one line, however it is broken
                    self.lines[-1] = begun, before + " ".join(data.split("\n"))
                    return
            else:
                self.lines.append((place, first))
            self.lines += [(place + n, line) for n, line in enumerate(others, 1) if line.strip()]

    def _end_block(self) -> None:
        self.lines.append((self.getpos()[0], ""))


def _html_lines(text: str) -> tuple[str, list[Line]]:
    parser = _HTMLText()
    parser.feed(text)
    parser.close()
    return " ".join(parser.title.split()), parser.lines


def _pdf_lines(path: Path) -> list[Line]:
    try:
        from pypdf import PdfReader
    except ImportError as error:
        raise UsageError(f"{path}: PDF needs pypdf: pip install 'mmgem[pdf]'") from error
    try:
        pages = [page.extract_text() for page in PdfReader(path).pages]
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except Exception as error:  # pypdf raises whatever a damaged file makes of its parser
        raise DataError(f"{path}: not a PDF that can be read ({' '.join(str(error).split())})") from error
    return [(n, line) for n, text in enumerate(pages, 1) for line in text.splitlines()]
