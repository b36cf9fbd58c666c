"""Comments and docstrings of source code, as paragraphs that know their lines.

Python is read by ``tokenize``; other languages by the marks of their comments, with strings passed over.
Comments on lines that follow each other are one paragraph, a docstring begins with the name of what it is of.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator

_C = (
    *(".c", ".h", ".cc", ".hh", ".cpp", ".hpp", ".cxx", ".m", ".java", ".kt", ".scala", ".cs", ".go", ".rs"),
    *(".js", ".jsx", ".mjs", ".ts", ".tsx", ".swift", ".php", ".css", ".scss", ".dart", ".proto"),
)
_HASH = (".sh", ".bash", ".zsh", ".rb", ".pl", ".pm", ".r", ".jl", ".cmake", ".tcl", ".ex", ".exs")
_DASH = (".sql", ".lua", ".hs", ".elm")
_SEMICOLON = (".el", ".lisp", ".clj", ".scm")
CODE = (".py", ".pyi", *_C, *_HASH, *_DASH, *_SEMICOLON)
"""Suffixes of source code."""

_STRING = r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`"
_BLOCK = r"(?P<block>/\*.*?(?:\*/|\Z))"
_PATTERNS = {
    **dict.fromkeys(_C, rf"{_STRING}|{_BLOCK}|//(?P<line>[^\n]*)"),
    **dict.fromkeys(_HASH, rf"{_STRING}|(?<!\S)#(?P<line>[^\n]*)"),
    **dict.fromkeys(_DASH, rf"\"(?:\\.|[^\"\\\n])*\"|'[^'\n]*'|{_BLOCK}|--(?P<line>[^\n]*)"),
    **dict.fromkeys(_SEMICOLON, r"\"(?:\\.|[^\"\\])*\"|;(?P<line>[^\n]*)"),
}
_DEFINITIONS = {"def": "Function", "class": "Class"}  # a capital begins a sentence
_SKIPPED = (tokenize.COMMENT, tokenize.NL, tokenize.ENCODING)
_MARKS = " \t/*#!-;"


def code_lines(text: str, suffix: str) -> list[tuple[int, str]]:
    """The lines of the comments in ``text``, each with its number from 1; an empty one between paragraphs."""
    if suffix in (".py", ".pyi"):
        try:
            comments = list(_python(text))
        except (tokenize.TokenError, SyntaxError):  # of another version of Python, or unfinished
            comments = list(_by_marks(text, _PATTERNS[".sh"]))
    else:
        comments = list(_by_marks(text, _PATTERNS[suffix]))
    lines: list[tuple[int, str]] = []
    for start, comment in sorted(comments):
        if lines and (start > lines[-1][0] + 1 or comment.endswith("\n")):  # a docstring ends with a break
            lines.append((start, ""))
        lines += [(start + n, line) for n, line in enumerate(comment.split("\n"))]
    # What is no sentence ends like one where its paragraph does.
    ends = [not after for _, after in lines[1:]] + [True]
    return [
        (n, f"{line}." if end and line[-1:].isalnum() else line)
        for (n, line), end in zip(lines, ends, strict=True)
    ]


def _python(text: str) -> Iterator[tuple[int, str]]:
    name, statement_begins, kind = "", True, ""
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    for n, token in enumerate(tokens):
        if token.type == tokenize.COMMENT and not token.string.startswith("#!"):
            yield token.start[0], _bare(token.string)
        elif token.type == tokenize.STRING and statement_begins:
            if tokens[n + 1].type in (tokenize.NEWLINE, tokenize.ENDMARKER):
                yield from _docstring(token, name)
        elif kind:
            name = f"{kind} {token.string}"
        if token.type not in _SKIPPED:
            statement_begins = token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
            kind = _DEFINITIONS.get(token.string, "") if token.type == tokenize.NAME else ""


def _docstring(token: tokenize.TokenInfo, name: str) -> Iterator[tuple[int, str]]:
    value = ast.literal_eval(token.string)
    if isinstance(value, str):
        first, *others = (line.strip() for line in value.split("\n"))
        yield token.start[0], "\n".join([f"{name}: {first}" if name else first, *others]) + "\n"


def _by_marks(text: str, pattern: str) -> Iterator[tuple[int, str]]:
    for found in re.finditer(pattern, text, re.DOTALL):
        if found.lastgroup is not None:
            line = text.count("\n", 0, found.start()) + 1
            yield line, "\n".join(_bare(part) for part in found[found.lastgroup].split("\n"))


def _bare(line: str) -> str:
    """A line of a comment without the marks around it."""
    return line.strip(_MARKS)
