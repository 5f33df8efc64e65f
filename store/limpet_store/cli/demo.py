"""Play a gateway's day on real dialogues, kill its worker again and again, and verify that nothing is missing.

Users on four channels talk to agents. A worker process keeps what they say in a store; it is killed with SIGKILL at
random moments and started again. Every line that it acknowledged has to be there, in order, in session and archive,
exactly once. Exit code 1 when one is not.

The dialogues come from the package chatterbot-corpus (pip install 'limpet[demo]'), or from transcripts of your own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from limpet.console import at_least_one, not_negative

from .common import UsageError

HELP = "play a gateway's day on real dialogues, killed at random moments; nothing may be missing"


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    # The common --store names the gateway's own store by default, which is the last place for a demo; replace it.
    group = parser.add_argument_group("what to play", conflict_handler="resolve")
    group.add_argument(
        "-s", "--store", metavar="PATH", default=None, help="where to leave the store; default a new temporary folder"
    )
    group.add_argument(
        "--sessions", metavar="N", type=at_least_one, help="play N sessions to their end; default a day of 25 s"
    )
    group.add_argument("--kills", metavar="N", type=not_negative, default=5, help="how often to kill; default 5")
    group.add_argument("--seed", metavar="N", type=int, help="who says what, when to kill; default another each time")
    group.add_argument(
        "--from",
        metavar="FOLDER",
        dest="source",
        type=Path,
        help='play transcripts: files *.jsonl of lines {"role": "user" or "assistant", "content": ...}',
    )


def run(args: argparse.Namespace) -> int:
    """Play."""
    from ..demo import run as demo
    from ..demo.sources import SourceError

    options = demo.Options(
        store=None if args.store is None else Path(args.store),
        sessions=args.sessions,
        kills=args.kills,
        seed=args.seed,
        source=args.source,
        json=args.json,
    )
    try:
        return demo.run(options)
    except (demo.UsageError, SourceError) as error:
        raise UsageError(str(error)) from None
