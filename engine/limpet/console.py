"""What both commands, `limpet` and `limpet-store`, share: their standard streams, and arguments that are checked.

Nothing that a file, a user or an argument contains may steer the terminal that shows it: every line goes out through
`say` and `note`, which write what cannot be printed as an escape, so that a text can neither move the cursor nor forge
a line. The exceptions are made for programs, never for a terminal: `say_exactly` and `write` give bytes as they are
stored.

No output and no interrupt ends in a traceback. `run` answers for a stream that is closed, full, or has lost its reader,
for an encoding that cannot write a character, and for Ctrl-C.

Standard output is not a file of a database: this module and no other speaks to the system about it.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import errno
import io
import json
import logging
import math
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator
from typing import IO, Any, BinaryIO, NoReturn, TextIO, cast

INTERRUPTED = 130  # what a shell reports of a program that SIGINT ended
BROKEN_PIPE = 141  # the same for SIGPIPE

# Two marks inside words and emoji that are invisible and move nothing: Persian and Hindi texts are full of them.
_JOINERS = "\u200c\u200d"
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_LOGGERS = ("limpet", "limpet_store")


# -- text ----------------------------------------------------------------------------------------


def escaped(text: str) -> str:
    r"""Text on one line that cannot steer a terminal: what is not printable is written as \x1b, \n, \u202e.

    Spaces of all widths and the two joiners stay. Escaping twice is escaping once.

    cost     nothing for text that is printable; else a pass over it
    """
    return _replaced(text, lambda char: char.encode("unicode_escape").decode())


def escaped_json(text: str, *, ascii_only: bool = False) -> str:
    r"""JSON of the same value that cannot steer a terminal: \u001b for what is not printable. Its line ends stay.

    ascii_only  for an encoding that may lack the other characters
    """
    if ascii_only and not text.isascii():
        text = _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)
    return "\n".join(_replaced(line, lambda char: json.dumps(char)[1:-1]) for line in text.split("\n"))


def _replaced(text: str, replace: Callable[[str], str]) -> str:
    if text.isprintable():
        return text
    return "".join(char if _is_harmless(char) else replace(char) for char in text)


def _is_harmless(char: str) -> bool:
    return char.isprintable() or char in _JOINERS or unicodedata.category(char) == "Zs"


# -- output --------------------------------------------------------------------------------------


def say(text: str = "") -> None:
    """A line on standard output, escaped."""
    print(escaped(text))


def say_exactly(text: str) -> None:
    """A text for whoever asked for this one: for a terminal escaped, for a program UTF-8 as it is stored."""
    if is_terminal():
        say(text)
    else:
        write(f"{text}\n".encode())


def say_json(value: Any, *, indent: int | None = None) -> None:
    """A value as JSON on standard output, with the characters as they are where the encoding has them all."""
    say_json_text(json.dumps(value, ensure_ascii=False, indent=indent))


def say_json_text(text: str) -> None:
    """JSON on standard output, on as many lines as it has."""
    print(_json_for_output(text))


def write(data: bytes) -> None:
    """Bytes on standard output, whatever its encoding is."""
    _binary_output().write(data)


def json_output() -> IO[Any]:
    """Where a program's lines of JSON go: standard output for bytes; a terminal gets text, and that escaped."""
    return cast("IO[Any]", _JsonOnTerminal()) if is_terminal() else _binary_output()


class _JsonOnTerminal:
    """As much of a text stream as writing lines takes."""

    def write(self, lines: str) -> int:
        return sys.stdout.write(_json_for_output(lines))


def _binary_output() -> BinaryIO:
    sys.stdout.flush()
    buffer: BinaryIO = sys.stdout.buffer
    return buffer


def binary_input() -> BinaryIO:
    """Standard input for bytes. OSError if it is closed."""
    if sys.stdin is None:
        raise OSError(errno.EBADF, "standard input is closed")
    buffer: BinaryIO = sys.stdin.buffer
    return buffer


def is_terminal() -> bool:
    """Whether people read standard output as it is written."""
    return sys.stdout.isatty()


def note(text: str) -> None:
    """A line on standard error, escaped. Where that cannot be written there is nobody to tell."""
    try:
        print(escaped(text), file=sys.stderr)
    except OSError:
        _drop(sys.stderr)


def shows_progress() -> bool:
    """Whether somebody sees what `progress` shows."""
    return sys.stderr.isatty()


def progress(line: str, *, end: str = "") -> None:
    """A line on standard error that the next one is written over."""
    try:
        sys.stderr.write(f"\r{escaped(line)}{end}")
        sys.stderr.flush()
    except OSError:
        _drop(sys.stderr)


def _json_for_output(text: str) -> str:
    try:
        is_utf8 = codecs.lookup(sys.stdout.encoding).name == "utf-8"
    except (LookupError, TypeError):  # a stream of a test, which has no encoding
        is_utf8 = False
    return escaped_json(text, ascii_only=not is_utf8)


# -- from the first line to the exit code --------------------------------------------------------


def run(name: str, body: Callable[[], int], *, refused: int) -> int:
    """Run a command, and answer for its streams and for Ctrl-C.

    name     of the command, for messages
    body     parses the arguments, does the work and returns the exit code; it lets BrokenPipeError pass
    refused  the exit code for output that cannot be written
    returns  the exit code
    raises   SystemExit as argparse does for --help and wrong usage
    """
    _prepare()
    code = 0
    try:
        with _warnings_as_notes(name):
            try:
                code = body()
            except SystemExit:  # argparse, at --help and wrong usage
                sys.stdout.flush()
                raise
            sys.stdout.flush()
            return code
    except BrokenPipeError:  # whoever read our output has seen enough
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                _drop(stream)
        return BROKEN_PIPE
    except KeyboardInterrupt:
        _drop(sys.stdout)  # to write what is left could block, and it would be half of something
        note(f"{name}: interrupted")
        return INTERRUPTED
    except OSError as error:
        _drop(sys.stdout)
        note(f"{name}: the output could not be written: {error}")
        return code or refused


def _prepare() -> None:
    if None in (sys.stdin, sys.stdout, sys.stderr):
        _occupy_standard_numbers()
    if sys.stdout is None:
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(_ClosedOutput()), encoding="utf-8")
    if sys.stderr is None:  # `print` takes None for standard output, where no message belongs
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # it serves until the process ends
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")  # no character that the terminal lacks may end the program


def _occupy_standard_numbers() -> None:
    """Keep the numbers 0 to 2 from the next files that are opened: one of them could be the database."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)


class _ClosedOutput(io.RawIOBase):
    """Standard output when the program was started without one."""

    is_dropped = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        if not self.is_dropped:
            raise OSError(errno.EBADF, "standard output is closed")
        return len(data)


def _drop(stream: TextIO) -> None:
    """Send what is left in a stream to nowhere: the interpreter writes it at its exit, and complains if it cannot."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    if isinstance(raw, _ClosedOutput):
        raw.is_dropped = True
        return
    with contextlib.suppress(OSError, ValueError):  # a stream of a test has no number
        number = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)


class _Notes(logging.Handler):
    def __init__(self, name: str) -> None:
        super().__init__(logging.WARNING)
        self._name = name

    def emit(self, record: logging.LogRecord) -> None:
        note(f"{self._name}: {record.levelname.lower()}: {record.getMessage()}")


@contextlib.contextmanager
def _warnings_as_notes(name: str) -> Iterator[None]:
    """Show what the libraries log: the logging module would print it as it is, control characters included."""
    handler = _Notes(name)
    loggers = [logging.getLogger(logger) for logger in _LOGGERS]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


# -- arguments -----------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """A parser whose complaints cannot steer the terminal either: they repeat what they were given."""

    wrong_usage = 2  # the exit code

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and end the program."""
        self.print_usage(sys.stderr)
        self.exit(self.wrong_usage, f"{self.prog}: error: {escaped(message)}\n")


def text(argument: str) -> str:
    """A type for argparse: text that goes into a file or is looked for in one.

    Arguments are bytes that Python decodes by the locale. In the C locale it does not understand UTF-8, which is what
    the terminal sends all the same; what is not UTF-8 either cannot be in any file of ours.
    """
    if argument.isascii():
        return argument
    try:
        argument.encode()
        return argument
    except UnicodeEncodeError:
        pass
    try:
        return os.fsencode(argument).decode()
    except UnicodeError:
        raise argparse.ArgumentTypeError(f"{argument!r} is not UTF-8") from None


def at_least_one(argument: str) -> int:
    """A type for argparse: a whole number, 1 or more."""
    return _whole(argument, 1)


def not_negative(argument: str) -> int:
    """A type for argparse: a whole number, 0 or more."""
    return _whole(argument, 0)


def seconds(argument: str) -> float:
    """A type for argparse: a time to wait, 0 or more; fractions are allowed, and so is "inf"."""
    try:
        number = float(argument)
    except ValueError:
        number = math.nan
    if not number >= 0:
        raise argparse.ArgumentTypeError(f"{argument!r} is no number of seconds, 0 or more")
    return number


def _whole(argument: str, least: int) -> int:
    # A ValueError would have argparse tell people the name of the function.
    try:
        number = int(argument)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{argument!r} is no whole number") from None
    if not least <= number <= sys.maxsize:
        most = "" if number < least else f" and {sys.maxsize} or less"
        raise argparse.ArgumentTypeError(f"{number} is not {least} or more{most}")
    return number
