"""`make` on a machine that lacks something says what is missing and what to do; .ci/run does what the README says.

`PYTHON` is a script here that plays an interpreter, so that nothing is installed and no network is asked.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")

# An interpreter that can be asked for its version and its modules, and makes an environment whose pip does as told.
PLAYED = """#!/bin/sh
case "$*" in
  *version_info*) exit {too_old} ;;
  --version) echo "Python 3.x" ;;
  *ensurepip*) exit {no_ensurepip} ;;
  "-m venv"*) for folder; do :; done; mkdir -p "$folder/bin"; cp "$0" "$folder/bin/python" ;;
  *"-m pip"*) echo "pip: no such host" >&2; exit {no_index} ;;
  *) exec {python} "$@" ;;
esac
"""


def make(folder: Path, target: str, **lacks: int) -> "subprocess.CompletedProcess[str]":
    """Run a target in a copy of what make reads, with an interpreter that lacks something."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    python = folder / "python"
    missing = {"too_old": 0, "no_ensurepip": 0, "no_index": 0} | lacks
    python.write_text(PLAYED.format(python="python3", **missing))
    python.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    return subprocess.run(
        ["make", target, f"PYTHON={python}"], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("target", ["demo", "test", "bare", "lint"])
@pytest.mark.parametrize(
    ("lacks", "told"),
    [
        ("too_old", ["Limpet needs Python 3.11 or later", "make PYTHON=python3.12"]),
        ("no_ensurepip", ["cannot make virtual environments", "apt install python3-venv"]),
        ("no_index", ["pip: no such host", "needs a package index", "make clean"]),
    ],
)
def test_what_is_missing_is_named_with_what_to_do(tmp_path: Path, target: str, lacks: str, told: list[str]) -> None:
    done = make(tmp_path, target, **{lacks: 1})
    assert done.returncode != 0
    for words in told:
        assert words in done.stderr
    assert not list(tmp_path.glob(".venv*/installed*")), "the next make would take it for installed"
    if lacks != "no_index":
        assert not list(tmp_path.glob(".venv*"))


def test_an_interpreter_that_is_not_there_is_named(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "pyproject.toml").touch()
    done = subprocess.run(
        ["make", "demo", "PYTHON=no-such-python"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "There is no no-such-python here" in done.stderr


def test_continuous_integration_begins_with_the_commands_of_the_readme_in_their_order() -> None:
    promised = re.findall(r"^    make ([a-z]+) ", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    steps = re.findall(r"^step ([a-z]+)$", (ROOT / ".ci" / "run").read_text("utf-8"), re.MULTILINE)
    assert promised
    assert steps[: len(promised)] == promised
    assert steps[-1] == "bare", "its last line is pytest's summary"
