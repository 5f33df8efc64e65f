"""Whole calls of a command, each in a process of its own, under conditions that a command line may meet.

    HOSTILE, FORGED     a text that would steer a terminal and forge a line, and what the forged line begins with
    verbs               the verbs of a command, found from its parser
    Call, run_calls     calls and what became of them

A process that has imported the command once forks for each call, sets up descriptors and streams as the interpreter
does at its start, and lets the call come to the end of the interpreter: what is flushed there counts too. So hundreds
of calls take seconds. It runs in the C locale, where Python takes arguments for ASCII and the rest for lone surrogates.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import io
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..console import at_least_one, not_negative, seconds

FORGED = "FORGED"
HOSTILE = f"a\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\n{FORGED}: x\r{FORGED}\x08\x7f\u2028{FORGED}\u00e9\U0001f980\\"
NOT_UTF8 = b"k\xff\x1b[31m"

SPOILS = ("closed", "gone", "full")  # of standard output: not there, its reader has gone, no room
_TRACES = (b"Traceback", b"Exception ignored", b"Fatal Python error", b"Error in sys.excepthook")
_NUMBERS = (int, float, at_least_one, not_negative, seconds)
_ALLOWED_CONTROLS = "\n"


@dataclass(frozen=True, slots=True)
class Call:
    """One call.

    argv      the arguments, text as UTF-8 or bytes
    stdout    "file", "terminal" (a file that says it is one), "closed", "gone" (a pipe without a reader), "full"
    stdin     "empty" or "closed"
    encoding  of the streams, and its errors
    """

    argv: tuple[str | bytes, ...]
    stdout: str = "file"
    stdin: str = "empty"
    encoding: str = "ascii"
    errors: str = "surrogateescape"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call left behind."""

    call: Call
    code: int
    out: bytes
    err: bytes

    def problems(self, codes: Iterable[int], *, exact: bool = False) -> list[str]:
        """What no call may do: a traceback, an exit code of its own, texts of users as they are in its output.

        exact  the call prints one value for programs, as it is stored
        """
        found = [f"{trace.decode()}" for trace in _TRACES if trace in self.out + self.err]
        if self.code not in codes:
            found.append(f"exit code {self.code}")
        for name, data in (("out", b"" if exact else self.out), ("err", self.err)):
            text = data.decode(self.call.encoding, "backslashreplace")
            raw = sorted({char for char in text if _steers(char)})
            if raw:
                found.append(f"raw {raw} in std{name}")
            if re.search(rf"^{FORGED}", text, re.MULTILINE):
                found.append(f"a forged line in std{name}")
        return [f"{self.call}: {problem}\n{self.out!r}\n{self.err.decode('utf-8', 'replace')}" for problem in found]


def _steers(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp") and char not in _ALLOWED_CONTROLS


def verbs(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of a command's verbs, by name."""
    (found,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(found.choices)


def texts(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments of a verb that take a text of the user's choice: all but switches, numbers and choices."""
    return [
        action
        for action in parser._actions
        if action.nargs != 0 and action.choices is None and action.type not in _NUMBERS
    ]


def run_calls(module: str, calls: Sequence[Call], folder: Path) -> list[Outcome]:
    """Run calls of a command one after the other.

    module   has `main`
    folder   empty; the calls are told and their output is kept there
    returns  their outcomes, in the same order
    """
    (folder / "calls").write_text(
        json.dumps([asdict(call) | {"argv": [_bytes(text).hex() for text in call.argv]} for call in calls])
    )
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LC_", "LANG"))},
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
    }
    program = f"from {__name__} import serve; serve({module!r}, {os.fspath(folder)!r})"
    # The folder is also where files land that hostile arguments name.
    subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=folder, stdin=subprocess.DEVNULL, check=True, timeout=100
    )
    codes = json.loads((folder / "codes").read_text())
    return [
        Outcome(call, code, (folder / f"{number}.out").read_bytes(), (folder / f"{number}.err").read_bytes())
        for number, (call, code) in enumerate(zip(calls, codes, strict=True))
    ]


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def serve(module: str, folder: str) -> None:
    """The process that forks. For `run_calls`."""
    main = importlib.import_module(module).main
    codes = []
    gc.freeze()  # what the children share is not worth their time
    for number, told in enumerate(json.loads(Path(folder, "calls").read_text())):
        argv = [os.fsdecode(bytes.fromhex(text)) for text in told.pop("argv")]
        pid = os.fork()
        if pid == 0:
            _set_up(Path(folder), number, Call(tuple(argv), **told))
            sys.exit(main(argv))
        _, status = os.waitpid(pid, 0)
        codes.append(os.waitstatus_to_exitcode(status))
    Path(folder, "codes").write_text(json.dumps(codes))


def _set_up(folder: Path, number: int, call: Call) -> None:
    """Descriptors 0 to 2 and the streams on them, as a shell and the interpreter make them."""
    out, err = (os.open(folder / f"{number}.{name}", os.O_WRONLY | os.O_CREAT, 0o600) for name in ("out", "err"))
    os.dup2(err, 2)
    if call.stdout == "gone":
        reader, out = os.pipe()
        os.close(reader)
    elif call.stdout == "full":
        out = os.open("/dev/full", os.O_WRONLY)
    os.dup2(out, 1)
    os.closerange(3, 64)
    sys.stderr = io.TextIOWrapper(
        io.FileIO(2, "w", closefd=False), encoding=call.encoding, errors="backslashreplace", write_through=True
    )
    stream = _Terminal if call.stdout == "terminal" else io.TextIOWrapper
    sys.stdout = stream(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), encoding=call.encoding, errors=call.errors)
    if call.stdout == "closed":
        os.close(1)
        sys.stdout = None
    if call.stdin == "closed":
        os.close(0)
        sys.stdin = None


class _Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True
