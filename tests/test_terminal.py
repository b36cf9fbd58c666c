"""Photos in a terminal: each protocol, drawn back into pixels."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmgem.cli import hits as hits_module
from mmgem.cli.main import main
from mmgem.errors import UsageError
from mmgem.report.terminal import CELL, show_in_terminal, terminal_protocol


def picture(width: int = 60, height: int = 40) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 4, y * 6, (x + y) * 2], -1).astype(np.uint8))


def test_half_blocks() -> None:
    text = show_in_terminal(picture(), "blocks", 30, 10)
    lines = text.splitlines()
    assert len(lines) == 10 and all(line.endswith("\x1b[0m") for line in lines)
    cell = r"\x1b\[38;2;(\d+);(\d+);(\d+);48;2;(\d+);(\d+);(\d+)m▀"
    drawn = np.array([[list(map(int, found)) for found in re.findall(cell, line)] for line in lines])
    assert drawn.shape == (10, 30, 6)
    pixels = drawn.reshape(10, 30, 2, 3).transpose(0, 2, 1, 3).reshape(20, 30, 3)
    np.testing.assert_array_equal(pixels, np.asarray(picture().resize((30, 20))))


def test_within_the_space_there_is() -> None:
    wide = show_in_terminal(picture(400, 10), "blocks", 20, 10).splitlines()
    assert len(wide) == 1 and wide[0].count("▀") == 20
    high = show_in_terminal(picture(3, 400), "blocks", 20, 10).splitlines()
    assert len(high) == 10 and high[0].count("▀") == 1


def test_kitty() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8))
    text = show_in_terminal(noise, "kitty", 30, 10)
    parts = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", text)
    assert len(parts) > 2 and parts[0][0] == "a=T,f=100,q=2,c=30,r=10,m=1"
    assert [keys for keys, _ in parts[1:]] == ["m=1"] * (len(parts) - 2) + ["m=0"]
    assert all(len(data) <= 4096 for _, data in parts) and text.endswith("\x1b\\\n")
    image = Image.open(io.BytesIO(base64.b64decode("".join(data for _, data in parts))))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(noise))


def test_iterm2() -> None:
    text = show_in_terminal(picture(), "iterm2", 30, 10)
    found = re.fullmatch(r"\x1b\]1337;File=inline=1;width=30;height=10;.*size=(\d+):(.*)\a\n", text)
    assert found is not None
    data = base64.b64decode(found[2])
    assert len(data) == int(found[1]) and Image.open(io.BytesIO(data)).size == (300, 200)


def sixels(text: str) -> np.ndarray:
    """What a terminal that knows sixels would draw."""
    found = re.fullmatch(r'\x1bPq"1;1;(\d+);(\d+)(.*)\x1b\\\n', text)
    assert found is not None
    pixels = np.full((int(found[2]), int(found[1]), 3), -1)
    palette: dict[int, list[int]] = {}
    colour = x = top = 0
    token = re.compile(r"#(\d+);2;(\d+);(\d+);(\d+)|#(\d+)|!(\d+)([?-~])|([?-~])|([$-])")
    at = 0
    while at < len(found[3]):
        match = token.match(found[3], at)
        assert match is not None, found[3][at : at + 20]
        at = match.end()
        if match[1]:
            palette[int(match[1])] = [int(match[n]) for n in (2, 3, 4)]
        elif match[5]:
            colour = int(match[5])
        elif match[9]:
            x, top = 0, top + 6 * (match[9] == "-")
        else:
            count, char = (int(match[6]), match[7]) if match[6] else (1, match[8])
            for row in range(6):
                if (ord(char) - 63) >> row & 1:
                    pixels[top + row, x : x + count] = palette[colour]
            x += count
    return pixels


@pytest.mark.parametrize("size", [(60, 40), (57, 41), (6, 6), (300, 7)])
def test_sixel(size: tuple[int, int]) -> None:
    image = picture(*size)
    text = show_in_terminal(image, "sixel", 30, 10)
    scale = min(30 * CELL[0] / size[0], 10 * CELL[1] / size[1])
    small = image.resize([max(1, round(side * scale)) for side in size])
    expected = np.asarray(small.quantize(256).convert("RGB")).astype(int) * 100 // 255
    np.testing.assert_array_equal(sixels(text), expected)


def test_what_a_terminal_shows() -> None:
    for environment, expected in (
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "iterm2"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-256color"}, "blocks"),
        ({}, "blocks"),
        ({"TERM": "screen", "KITTY_WINDOW_ID": "1"}, "blocks"),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/x"}, "blocks"),
        ({"TERM": "xterm-kitty", "MMGEM_PREVIEW": "sixel"}, "sixel"),
    ):
        assert terminal_protocol(environment) == expected
    with pytest.raises(UsageError, match="MMGEM_PREVIEW=ascii: must be one of kitty"):
        terminal_protocol({"MMGEM_PREVIEW": "ascii"})


def test_hits_with_their_pictures(
    tiny_photos: list[Path],
    tiny_model_folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, drawn = tmp_path / "idx", list[str]()
    argv = ["search", str(out), "the dog", "-k", "2"]
    assert main(["index", str(tiny_photos[0].parent), "--out", str(out), "-m", str(tiny_model_folder)]) == 0
    capfd.readouterr()
    assert main(argv) == 0
    plain = capfd.readouterr().out
    assert main([*argv, "--preview"]) == 0
    assert capfd.readouterr().out == plain, "never where nobody looks"

    def told(function: Callable[..., str]) -> Callable[..., str]:
        def draw(*arguments: object) -> str:
            drawn.append(function(*arguments))
            return drawn[-1]

        return draw

    monkeypatch.setenv("MMGEM_PREVIEW", "blocks")
    monkeypatch.setattr(hits_module, "_is_terminal", lambda: True)
    monkeypatch.setattr("mmgem.report.terminal.show_in_terminal", told(show_in_terminal))
    assert main([*argv, "--preview"]) == 0
    first, second = plain.splitlines(keepends=True)
    assert len(drawn) == 2 and capfd.readouterr().out == first + drawn[0] + second + drawn[1]
    assert main([*argv, "--preview", "--json"]) == 0
    assert len(drawn) == 2 and len(json.loads(capfd.readouterr().out)["hits"]) == 2, "lines alone have some"
