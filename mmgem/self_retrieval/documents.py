"""Plain text and Markdown as titles and passages.

The title is a heading the text begins with, else the file's name. Passages have at most 200 words, never go
on across a heading and end where a paragraph or else a sentence does. Each paragraph, heading, item of a
list, row of a table and line of code is a line of its passage; headings stand before what they are about.
Front matter and rules go; of Markdown also the addresses of images and links and the marks of lists, quotes,
bold words and code. Code itself stays.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mmgem.data.scripts import join_units, text_units
from mmgem.data.sentences import cut_words, split_prose, tidy_lines
from mmgem.errors import DataError, UsageError
from mmgem.utils.text_files import read_text

MARKDOWN = (".md", ".markdown")
SUFFIXES = (".txt", *MARKDOWN)
MAX_WORDS = 200

_KEY = re.compile(r"#|[\w\"'][\w .\"'-]*:(?:\s|$)")
_COMMENT = re.compile(r"\s*<!--.*?-->", re.DOTALL)
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})[^`]*$")
_HEADING = re.compile(r" {0,3}#{1,6}(?:[ \t]+(.*))?$")
_UNDERLINE = re.compile(r" {0,3}(?:={3,}|-{3,})\s*$")
_RULE = re.compile(r"([-*_=])(?:[ \t]*\1){2,}$|\|?[ \t]*:?-{2,}:?[ \t|:-]*$")  # or a table's second line
_ITEM = re.compile(r"[ \t]*(?:[-*+]|(\d{1,9}[.)]))[ \t]+(?=\S)")
_QUOTE = re.compile(r" {0,3}(?:> ?)+")
_ADDRESS = r"\[([^][]*)\]\((?:[^()\s]|\([^()\s]*\))*(?:\s[^()]*)?\)"
_MARKUP = (
    (re.compile(f"!{_ADDRESS}"), r"\1"),
    (re.compile(_ADDRESS), r"\1"),
    (re.compile(r"\*\*(?=\S)([^*]+)(?<=\S)\*\*"), r"\1"),
    (re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)"), r"\2"),
)


def text_files(root: Path, suffixes: tuple[str, ...] = SUFFIXES) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The files under a folder with one of ``suffixes`` (lower case; those of text and Markdown) in order of
    their paths, and what is skipped, with reasons.

    Hidden files and folders are left out, linked folders are not followed.
    """
    files: list[Path] = []
    skipped: list[tuple[Path, str]] = []

    def failed(error: OSError) -> None:
        skipped.append((Path(error.filename), error.strerror or "cannot be opened"))

    for directory, folders, names in os.walk(root, onerror=failed):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and name.lower().endswith(suffixes):
                path = Path(directory, name)
                if path.is_file():
                    files.append(path)
                else:  # a link to nowhere, a pipe
                    skipped.append((path, "not a file"))
    return sorted(files, key=lambda path: path.relative_to(root).as_posix()), skipped


def read_document(path: Path) -> tuple[str, list[str]]:
    """The title and the passages of a text or Markdown file.

    Raises ``DataError``, naming the file, if it cannot be opened, is not UTF-8 or has no text.
    """
    try:
        text = read_text(path)
    except UsageError as error:
        raise DataError(str(error)) from error
    if "\0" in text:
        raise DataError(f"{path}: not text, it holds zero bytes")
    title, passages = split_document(text, markdown=path.suffix.lower() in MARKDOWN)
    if not passages:
        raise DataError(f"{path}: no text")
    return document_title(title, path), passages


def document_title(title: str, path: Path) -> str:
    """``title``, or if it is empty the name of the file in words."""
    name = path.stem.replace("_", " ").replace("-", " ")
    return title or " ".join(name.split()) or path.stem


def plain_line(line: str) -> str:
    """A line of Markdown without the marks that are no words."""
    for pattern, plain in _MARKUP:
        line = pattern.sub(plain, line)
    return line


def split_document(text: str, markdown: bool) -> tuple[str, list[str]]:
    """The title of a document, "" if it does not begin with a heading, and its passages, in lines of single
    spaces.

    ``markdown``: its marks are no words.
    """
    lines = _without_front_matter(text.splitlines())
    if markdown:
        text = "\n".join(lines)
        while comment := _COMMENT.match(text):
            text = text[comment.end() :]
        lines = text.splitlines()
    parser = _Parser(markdown)
    for line in lines:
        parser.feed(line)
    parser.close()
    return parser.title or "", [passage for section in parser.sections for passage in _passages(section)]


class _Parser:
    """Lines to sections, each a list of paragraphs; the first may be empty."""

    def __init__(self, markdown: bool):
        self.markdown = markdown
        self.title: str | None = None
        self.sections: list[list[str]] = [[]]
        self._headings: list[str] = []  # that no text has followed yet
        self._lines: list[str] = []  # of the paragraph so far
        self._fence = ""  # of the code we are in
        self._item = False

    def feed(self, line: str) -> None:
        """Take the next line."""
        if self._fence:
            bare = line.strip(" \t>")
            if bare.startswith(self._fence) and not bare.strip(self._fence[0]):
                self.close()
            else:
                self._lines.append(line)
            return
        if self.markdown and (quote := _QUOTE.match(line)):
            line = line[quote.end() :]
        if fence := _FENCE.match(line):
            self.close()
            self._fence = fence[1]
        elif heading := _HEADING.match(line):
            self.close()
            words = (heading[1] or "").split()
            self._head(" ".join(words[:-1] if words and not words[-1].strip("#") else words))
        elif len(self._lines) == 1 and not self._item and _UNDERLINE.match(line):
            self._head(self._lines.pop())
        elif _RULE.match(line.strip()) or not line.strip():
            self.close()
        elif self.markdown and (item := _ITEM.match(line)):
            self.close()
            self._lines.append(f"{item[1] or ''} {line[item.end() :]}")
            self._item = True
        elif self.markdown and line.lstrip().startswith("|"):
            self.close()
            self._lines.append(line)
            self.close()
        else:
            self._lines.append(line)

    def close(self) -> None:
        """End a paragraph, or code."""
        text = tidy_lines("\n".join(self._lines)) if self._fence else self._tidy(" ".join(self._lines))
        if text:
            self.sections[-1].append("\n".join([*self._headings, text]))
            self._headings = []
        self._lines, self._fence, self._item = [], "", False

    def _head(self, words: str) -> None:
        words = self._tidy(words)
        if self.title is None and not any(self.sections):
            self.title = words
        elif words:
            self.sections.append([])
            self._headings.append(words if words[-1] in ".!?:" else f"{words}.")

    def _tidy(self, text: str) -> str:
        return " ".join((plain_line(text) if self.markdown else text).split())


def _without_front_matter(lines: list[str]) -> list[str]:
    """What follows the YAML between two lines ``---``, if the text begins with it."""
    if not lines or lines[0].rstrip() != "---":
        return lines
    end = next((n for n, line in enumerate(lines[1:], 1) if line.rstrip() in ("---", "...")), 0)
    inside = [line for line in lines[1:end] if line.strip()]
    return lines[end + 1 :] if end and (not inside or _KEY.match(inside[0])) else lines


def _passages(paragraphs: list[str]) -> Iterator[str]:
    """Fill passages. One that is half full ends rather than to break into the next paragraph."""
    passage: list[list[str]] = []  # the words of each line
    count = 0
    for paragraph in paragraphs:
        lines = [text_units(line) for line in paragraph.split("\n")]
        length = sum(map(len, lines))
        if count + length <= MAX_WORDS:
            passage += lines
            count += length
            continue
        if 2 * count >= MAX_WORDS:
            yield _text(passage)
            passage, count = [], 0
        for line in paragraph.split("\n"):
            passage.append([])
            for sentence in split_prose(line):
                for piece in cut_words(text_units(sentence), MAX_WORDS):
                    if count + len(piece) > MAX_WORDS:
                        yield _text(passage)
                        passage, count = [[]], 0
                    passage[-1] += piece
                    count += len(piece)
    if count:
        yield _text(passage)


def _text(lines: list[list[str]]) -> str:
    return "\n".join(join_units(words) for words in lines if words)
