"""The one check of texts that come in, from programs, command lines and files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mmgem.errors import DataError, UsageError

_NAME_WORDS = 6
_NAME_CHARACTERS = 40  # for languages that put no spaces between words


def check_texts(texts: Any, name: str = "texts") -> list[str]:
    """``texts`` as a list, if they are a list (or another iterable) of strings of valid Unicode.

    ``name``: what messages call them. Raises UsageError for what is no list of strings, DataError for half a
    character; both name the argument and the position.
    """
    if isinstance(texts, str):
        raise UsageError(f"{name} must be a list of strings, not one string")
    if isinstance(texts, bytes | bytearray | Mapping) or not isinstance(texts, Iterable):
        raise UsageError(f"{name} must be a list of strings, not {_kind(texts)}")
    return [check_text(text, f"{name}[{i}]") for i, text in enumerate(texts)]


def check_text(text: Any, name: str = "text") -> str:
    """``text``, if it is a string of valid Unicode. Raises as :func:`check_texts`."""
    if not isinstance(text, str):
        raise UsageError(f"{name} must be a string, not {_kind(text)}")
    if problem := half_character(text):
        raise DataError(f"{name} {problem}")
    return text


def query_sentence(text: str, prefix: str) -> str:
    """What is embedded of a search for ``text``: behind ``prefix`` if it is short, a name and no sentence
    (CLIP's prompts, Radford et al. 2021, section 3.1.4), and does not begin so itself; else as it is."""
    name = " ".join(text.split())
    is_name = 0 < len(name) <= _NAME_CHARACTERS and name.count(" ") < _NAME_WORDS
    if not is_name or name.lower().startswith(prefix.strip().lower()):
        return text
    return prefix + name


def half_character(text: str) -> str | None:
    """What is wrong with a string that holds surrogates, which JSON and command lines may hold and no
    tokenizer reads; None for text."""
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"holds half a character: {text[error.start]!a} in {text[:60]!a}"
    return None


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__
