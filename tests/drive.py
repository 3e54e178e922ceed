"""Runs several command lines of pgmkit in one process; see `test_new_plugins.py`.

The first argument is a JSON file with a list of command lines, and is replaced by their outcomes.
"""

import contextlib
import io
import json
import sys
from pathlib import Path

import pgmkit.testing

assert pgmkit.testing.checks_of("features")
WITH_PYTEST = "pytest" in sys.modules

import pytest  # noqa: E402
from tiny import run_pgmkit  # noqa: E402


def run(words: list[str]) -> dict[str, object]:
    if words[0] != "pytest":
        return vars(run_pgmkit(*words))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = int(pytest.main(words[1:]))
    return {"code": code, "stdout": printed.getvalue(), "stderr": ""}


if __name__ == "__main__":
    assert not WITH_PYTEST
    path = Path(sys.argv[1])
    path.write_text(json.dumps([run(words) for words in json.loads(path.read_text())]))
