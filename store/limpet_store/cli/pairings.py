"""List which peers may talk to the agent, channel by channel."""

from __future__ import annotations

import argparse

from limpet.console import text

from ..records import Pending
from ..schema import PAIRING
from .common import OK, open_store, print_rows, when

HELP = "list approved and pending peers"
COLUMNS = ("channel", "peer", "state", "code", "expires")


def configure(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("--channel", metavar="NAME", type=text, help="only this channel")


def run(args: argparse.Namespace) -> int:
    """List peers in the order of channel and id."""
    with open_store(args) as store, store.reading() as work:
        rows = [
            {
                "channel": channel,
                "peer": peer_id,
                "state": type(state).__name__,
                "code": state.code if isinstance(state, Pending) else None,
                "expires": when(state.expires_at) if isinstance(state, Pending) else None,
            }
            for (channel, peer_id), state in work.scan(PAIRING)
            if args.channel in (None, channel)
        ]
    print_rows(args, rows, COLUMNS, nothing="no peers")
    return OK
