"""Runs command lines of pgmkit; see `test_new_plugins.py`.

Each line of standard input names a JSON file with a list of command lines, which a process of their
own, forked before any plugin is looked for, replaces by their outcomes. What it says besides goes
to files beside that one, `.stdout` and `.stderr`; its exit status is the answer.
"""

import contextlib
import io
import json
import os
import signal
import sys
from pathlib import Path

import pgmkit.testing

assert pgmkit.testing.checks_of("features")
WITH_PYTEST = "pytest" in sys.modules

import pytest  # noqa: E402
import scipy.stats  # noqa: E402, F401
import sklearn.cluster  # noqa: E402, F401
import sympy  # noqa: E402, F401
from plain import draw_plainly  # noqa: E402
from tiny import run_pgmkit  # noqa: E402

from pgmkit.plugins import installed  # noqa: E402
from pgmkit.spectrum import differentiation  # noqa: E402


def run(words: list[str]) -> dict[str, object]:
    if words[0] != "pytest":
        return vars(run_pgmkit(*words))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = int(pytest.main(words[1:]))
    return {"code": code, "stdout": printed.getvalue(), "stderr": ""}


def replace_by_outcomes(path: Path) -> None:
    for number, suffix in ((1, ".stdout"), (2, ".stderr")):
        with path.with_suffix(suffix).open("w") as file:
            os.dup2(file.fileno(), number)
    path.write_text(json.dumps([run(words) for words in json.loads(path.read_text())]))


if __name__ == "__main__":
    assert not WITH_PYTEST
    draw_plainly(pytest.MonkeyPatch())
    differentiation._CALIBRATION_SECONDS = 0.2
    for line in sys.stdin:
        assert not installed.cache_info().currsize
        process = os.fork()
        if not process:
            signal.alarm(200)
            replace_by_outcomes(Path(line.strip()))
            sys.exit()
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
