import os
import pty
import re
import subprocess
import sys
import termios
import threading
import time

import pytest

from pgmkit import progress

_SLOW = """
import sys
import time
from pgmkit import progress
from tqdm import std
progress._SECONDS = 0.2
with progress.shown():
    with progress.phase("counting", total=4) as part:
        for _ in range(4):
            time.sleep(0.15)
            part.advance()
    with progress.phase("quick", total=1) as part:
        part.advance()
    std.time = lambda: 5 * time.time()
    progress._TICK = 1 / 5
    with progress.phase("thinking"):
        time.sleep(float(sys.argv[1]))
"""


def test_a_slow_phase_is_one_line_where_it_is_piped_and_a_quick_one_is_none():
    done = subprocess.run(
        [sys.executable, "-c", _SLOW, "0.4"], capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines() == ["counting: 4 steps", "thinking"]
    assert done.stdout == ""


def test_a_slow_phase_is_a_bar_with_the_time_left_on_a_terminal():
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    process = subprocess.Popen([sys.executable, "-c", _SLOW, "1.0"], stderr=theirs)
    assert process.wait(timeout=60) == 0
    said = os.read(ours, 10_000).decode()
    os.close(theirs)
    os.close(ours)
    assert "counting" in said
    assert "<00:00" in said  # elapsed<left
    assert "quick" not in said
    clocks = [int(found) for found in re.findall(r"thinking: 00:0(\d)\b", said)]
    assert clocks == sorted(set(clocks))  # it goes on, without a count of no steps
    assert len(clocks) >= 3


@pytest.mark.parametrize("on", [True, False])
def test_nothing_is_said_unless_progress_is_shown(monkeypatch, capsys, on):
    monkeypatch.setattr(progress, "_SECONDS", 0.05)
    with progress.shown(on), progress.phase("working"):
        progress.tell("a line")
        time.sleep(0.2)
    assert capsys.readouterr().err == ("a line\nworking\n" if on else "")


def test_tracked_items_are_the_items():
    assert list(progress.track([3, 1, 2], "sorting", total=3)) == [3, 1, 2]


def test_a_follower_is_told_of_each_step_from_any_thread_and_may_stop_it(capsys):
    seen = []
    with progress.followed(lambda *told: seen.append(told)):
        with progress.phase("counting", total=3, initial=1) as part:
            step = threading.Thread(target=part.advance, args=(2,))
            step.start()
            step.join()
        for _ in progress.track("ab", "letters", 2):
            pass
    with progress.phase("nobody looks"):
        pass
    assert seen[:2] == [("counting", 1, 3), ("counting", 3, 3)]
    assert seen[2:] == [("letters", done, 2) for done in (0, 1, 2)]
    assert capsys.readouterr().err == ""

    def stop(name, done, total):
        if done == 2:
            raise InterruptedError(name)

    with progress.followed(stop), pytest.raises(InterruptedError, match="letters"):
        list(progress.track("abc", "letters", 3))
