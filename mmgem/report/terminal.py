"""Photos in a terminal: by the protocols of kitty, iTerm2 and sixel, else as half blocks in 24-bit colours.

Which of them a terminal knows is told by the environment it sets, not asked for: an answer that never comes
would hang a pipeline. Within tmux and screen, which keep pictures from the terminal, it is half blocks.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from typing import Literal, get_args

import numpy as np
from PIL import Image

from mmgem.errors import UsageError

Protocol = Literal["kitty", "iterm2", "sixel", "blocks"]

CELL = (10, 20)
"""Width and height in pixels that a character is taken to have, where a picture is made of pixels."""

_CHUNK = 4096  # bytes of base64 in one of kitty's sequences
_SIXEL_COLOURS = 256
_ITERM = ("iTerm.app", "WezTerm", "mintty", "vscode", "rio")
_SIXEL = ("foot", "mlterm", "contour", "yaft")


def terminal_protocol(environment: Mapping[str, str]) -> Protocol:
    """What the terminal of this environment shows; ``MMGEM_PREVIEW`` may say it. Raises UsageError for a
    value of that which is none."""
    if given := environment.get("MMGEM_PREVIEW"):
        if given not in get_args(Protocol):
            raise UsageError(f"MMGEM_PREVIEW={given}: must be one of {', '.join(get_args(Protocol))}")
        return given  # type: ignore[return-value]
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if "TMUX" in environment or term.startswith(("screen", "tmux")):
        return "blocks"
    if "KITTY_WINDOW_ID" in environment or term in ("xterm-kitty", "xterm-ghostty") or program == "ghostty":
        return "kitty"
    if program in _ITERM or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    return "sixel" if term.startswith(_SIXEL) else "blocks"


def show_in_terminal(image: Image.Image, protocol: Protocol, columns: int, rows: int) -> str:
    """The text that draws an RGB image within ``columns`` and ``rows`` of characters, in its own shape; ends
    with a line break."""
    wide, high = CELL if protocol != "blocks" else (1, 2)
    scale = min(columns * wide / image.width, rows * high / image.height)
    width, height = (max(1, round(side * scale)) for side in image.size)
    if protocol == "blocks":
        return "".join(_blocks(image.resize((width, height))))
    across, down = -(-width // wide), -(-height // high)
    small = image.resize((width, height))
    if protocol == "sixel":
        return _sixel(small) + "\n"
    file = io.BytesIO()
    small.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode("ascii")
    if protocol == "iterm2":
        fields = f"inline=1;width={across};height={down};preserveAspectRatio=1;size={len(file.getvalue())}"
        return f"\x1b]1337;File={fields}:{data}\a\n"
    return _kitty(data, across, down) + "\n"


def _kitty(data: str, columns: int, rows: int) -> str:
    chunks = [data[at : at + _CHUNK] for at in range(0, len(data), _CHUNK)]
    parts = []
    for number, chunk in enumerate(chunks):
        more = int(number < len(chunks) - 1)
        keys = f"a=T,f=100,q=2,c={columns},r={rows},m={more}" if number == 0 else f"m={more}"
        parts.append(f"\x1b_G{keys};{chunk}\x1b\\")
    return "".join(parts)


def _blocks(image: Image.Image) -> Iterator[str]:
    """Two rows of pixels a line: the upper is the letter's colour, the lower the background's."""
    pixels = np.asarray(image)
    if len(pixels) % 2:
        pixels = np.concatenate([pixels, pixels[-1:]])
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        for (r, g, b), (s, h, c) in zip(upper.tolist(), lower.tolist(), strict=True):
            yield f"\x1b[38;2;{r};{g};{b};48;2;{s};{h};{c}m\u2580"
        yield "\x1b[0m\n"


def _sixel(image: Image.Image) -> str:
    """DEC's sixels: bands of six rows, a pass over the band for each of its colours, runs counted."""
    paletted = image.quantize(_SIXEL_COLOURS)
    palette = np.array(paletted.getpalette(), int).reshape(-1, 3)
    pixels = np.asarray(paletted)
    out = [f'\x1bPq"1;1;{image.width};{image.height}']
    out += [f"#{n};2;{r};{g};{b}" for n, (r, g, b) in enumerate((palette * 100 // 255).tolist())]
    weights = 1 << np.arange(6)[:, None]
    for top in range(0, len(pixels), 6):
        band = pixels[top : top + 6]
        lines = []
        for colour in np.unique(band).tolist():
            bits = ((band == colour) * weights[: len(band)]).sum(axis=0)
            lines.append(f"#{colour}{_runs(bits)}")
        out.append("$".join(lines) + "-")
    return "".join(out) + "\x1b\\"


def _runs(bits: np.ndarray) -> str:
    """Columns of six pixels ``(width,)`` as characters, more than three alike as a count."""
    starts = np.flatnonzero(np.diff(bits, prepend=-1))
    counts = np.diff(starts, append=len(bits))
    text = ""
    for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
        char = chr(63 + int(bits[start]))
        text += f"!{count}{char}" if count > 3 else char * count
    return text
