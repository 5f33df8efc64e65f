"""The programs `limpet` and `limpet-store` from their first line on: Ctrl-C ends them at any moment, and quietly.

An interrupt in the first moments came out of the middle of an import, as a traceback of forty lines.
"""

import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import limpet

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals are sent in another way there")

# Read by the interpreter before anything of ours: at the import that the test names, it rings the process.
RING = """
import os, signal, sys
_left = int(os.environ["RING_AT"])
_seen = False
def _hook(event, arguments):
    global _left, _seen
    if event == "import":
        _seen = _seen or arguments[0] in ("limpet", "limpet_store")
        if _seen:
            _left -= 1
            if _left == 0:
                os.kill(os.getpid(), signal.SIGINT)
    elif event == "open" and os.environ.get("RING_PATH") == arguments[0]:
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(_hook)
"""


def program(name: str) -> str:
    """The installed program."""
    found = Path(sysconfig.get_path("scripts"), name)
    if not found.exists():
        pytest.skip(f"{name} is not installed here")
    return str(found)


def run(tmp_path: Path, argv: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "sitecustomize.py").write_text(RING)
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    return subprocess.run(
        argv, env={**os.environ, "PYTHONPATH": paths, "RING_AT": "0", **environment}, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip  # what runs in one line, how in the next


@pytest.mark.parametrize("name", ["limpet", "limpet-store"])
@pytest.mark.parametrize("at", [1, 2, 20, 60])
def test_an_interrupt_while_importing_ends_quietly(name: str, at: int, tmp_path: Path) -> None:
    done = run(tmp_path, [program(name), "--help"], RING_AT=str(at))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize(("name", "verb"), [("limpet", "check"), ("limpet-store", "import")])
def test_an_interrupt_while_working_says_so(name: str, verb: str, tmp_path: Path) -> None:
    path = tmp_path / "app.limpet"
    limpet.open(path).close()
    target = ["--store", str(tmp_path / "new.limpet")] if verb == "import" else []
    done = run(tmp_path, [program(name), verb, str(path), *target], RING_PATH=str(path))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{name}: interrupted\n")


def test_an_interrupt_that_the_caller_has_switched_off_stays_off(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        done = run(tmp_path, [program("limpet"), "--version"], RING_AT="20")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (done.returncode, done.stderr) == (0, "")
