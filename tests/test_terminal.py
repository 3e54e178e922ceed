"""Pictures in terminals: which way, and what arrives."""

import base64
import io
import re
import sys

import numpy as np
import pytest
from PIL import Image

from pgmkit.cli.terminal import _sixel, drawn, show, way_of

RED_ON_BLUE = np.array([[[255, 0, 0]] * 12, [[0, 0, 255]] * 12], dtype=np.uint8)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "way"),
    [
        ({"TERM": "xterm-256color"}, "blocks"),
        ({"TERM": "xterm-kitty", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty", "TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/x", "KITTY_WINDOW_ID": "1"}, "blocks"),
        ({"TERM": "foot", "NO_COLOR": "1"}, "none"),
        ({"TERM": "foot", "NO_COLOR": ""}, "sixel"),
        ({"TERM": "dumb"}, "none"),
        ({"TERM": "xterm", "PGMKIT_PICTURES": "sixel"}, "sixel"),
        ({"TERM": "xterm", "PGMKIT_PICTURES": "none"}, "none"),
    ],
)
def test_each_terminal_has_its_way(environment: dict[str, str], way: str) -> None:
    assert way_of(Terminal(), environment) == way
    assert way_of(io.StringIO(), environment) == "none"


def test_nothing_is_printed_where_stdout_is_piped(capsys: pytest.CaptureFixture[str]) -> None:
    show([("0", RED_ON_BLUE)])
    assert capsys.readouterr().out == ""


def test_a_half_block_is_two_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    for name in ("TMUX", "NO_COLOR", "PGMKIT_PICTURES", "KITTY_WINDOW_ID", "TERM_PROGRAM"):
        monkeypatch.delenv(name, raising=False)
    for colours, told in (("truecolor", "38;2;255;0;0;48;2;0;0;255"), ("", "38;5;196;48;5;21")):
        monkeypatch.setenv("COLORTERM", colours)
        screen.seek(0)
        screen.truncate()
        show([("zero", RED_ON_BLUE)] * 2)
        label, *lines = screen.getvalue().splitlines()
        assert re.findall(r"\w+", label) == ["zero", "zero"]
        assert any(f"\x1b[{told}m▀" in line for line in lines)


@pytest.mark.parametrize("way", ["kitty", "iterm2"])
def test_terminals_with_png_get_the_whole_picture(way: str) -> None:
    random = np.random.default_rng(0).integers(0, 256, (30, 10, 3), dtype=np.uint8)
    text = "".join(drawn([("a", random), ("b", random)], way, 80))
    if way == "kitty":
        parts = re.findall(r"\x1b_G[^;]*?m=([01]);([^\x1b]*)\x1b\\", text)
        assert [more for more, _ in parts] == ["1"] * (len(parts) - 1) + ["0"]
        assert all(len(part) <= 4096 for _, part in parts)
        data = "".join(part for _, part in parts)
    else:
        (data,) = re.findall(r"\x1b\]1337;File=[^:]*:(.*)\x07", text)
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert picture.size == (2 * 13 * 10, 18 * 20)


def test_sixels_are_the_pixels_they_stand_for() -> None:
    random = np.random.default_rng(0).choice([0, 255], (8, 30, 1)).astype(np.uint8)
    shades = random.repeat(3, axis=2).repeat(5, axis=1)
    text = _sixel(shades)
    start, size = '\x1bPq"1;1;', f"{shades.shape[1]};{shades.shape[0]}"
    assert text.startswith(start + size)
    assert text.endswith("\x1b\\")
    colours = {
        int(number): int(red) * 255 // 100
        for number, red in re.findall(r"#(\d+);2;(\d+);\d+;\d+", text)
    }
    canvas = np.full((12, shades.shape[1]), -1)
    body = re.sub(r"#\d+;2;\d+;\d+;\d+", "", text[len(start + size) : -2])
    for band, line in enumerate(body.split("-")[:-1]):
        for number, sixels in re.findall(r"#(\d+)([^#$]*)\$", line):
            column = 0
            for count, bits in re.findall(r"(?:!(\d+))?([?-~])", sixels):
                for _ in range(int(count or 1)):
                    for bit in range(6):
                        if (ord(bits) - 63) >> bit & 1:
                            canvas[6 * band + bit, column] = colours[int(number)]
                    column += 1
    assert (canvas[:8] == shades[:, :, 0]).all()
    assert (canvas[8:] == -1).all()
    assert len(text) < shades[:, :, 0].size  # runs are counted


def test_no_more_lines_than_a_screen_has() -> None:
    square = np.zeros((8, 8), dtype=np.uint8)
    for count, columns in ((3, 200), (10, 80), (100, 80), (5, 6)):
        lines = list(drawn([(str(n), square) for n in range(count)], "blocks", columns))
        assert len(lines) <= 24
        shown = sum(len(line.split()) for line in lines if "▀" not in line and "more" not in line)
        left = re.search(r"and (\d+) more", lines[-1])
        assert shown + int(left[1] if left else 0) == count
