"""The other side of regex.py: a program of its own that searches texts for a regular expression until it is killed.

It is run by its path, with nothing but the standard library around it. Both sides speak through pipes:

  in   the pattern and then texts, each as a frame: 4 bytes little-endian with the size, then UTF-8
       a frame of size 2^32 - 1 without a body asks for the answers to the texts since the last one
  out  "+" when the pattern is a regular expression, else "-" and why it is none, up to the end
       then, whenever it is asked, one byte for each text: 1 found, 0 not
"""

from __future__ import annotations

import re
import struct
import sys
from typing import BinaryIO

SIZE = struct.Struct("<I")
ASK = 2**32 - 1
TEXT = "surrogatepass"  # a row that somebody else wrote may hold half a pair
MEMORY = 512 * 1024 * 1024  # bytes of address space; the interpreter takes 20 MiB of it


def frame(text: str) -> bytes:
    """A text as it goes through the pipe."""
    body = text.encode("utf-8", TEXT)
    return SIZE.pack(len(body)) + body


def limit(seconds: int) -> None:
    """See to it that this process ends even if nobody is left to kill it, and takes no more memory than it should."""
    try:
        import resource
    except ImportError:  # Windows: whoever started it kills it
        return
    for kind, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, MEMORY)):
        try:
            resource.setrlimit(kind, (most, most))
        except (ValueError, OSError):
            pass  # a lower one is set already, or the system does not know it


def read_frame(stream: BinaryIO) -> str | None:
    """The next text; None for a question. EOFError at the end."""
    (size,) = SIZE.unpack(_exactly(stream, SIZE.size))
    return None if size == ASK else _exactly(stream, size).decode("utf-8", TEXT)


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data


def main() -> int:
    """Answer until the input ends."""
    limit(int(sys.argv[1]))
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    try:
        pattern = read_frame(questions)
        assert pattern is not None
        try:
            search = re.compile(pattern, re.IGNORECASE).search
        except (re.error, OverflowError, RecursionError) as error:
            answers.write(b"-" + str(error).encode("utf-8", "replace"))
            return 0
        answers.write(b"+")
        answers.flush()
        found = bytearray()
        while True:
            text = read_frame(questions)
            if text is not None:
                found.append(search(text) is not None)
                continue
            answers.write(found)
            answers.flush()
            found.clear()
    except EOFError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
