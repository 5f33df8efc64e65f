"""The demo from beginning to end: find dialogues, play the day, verify, report."""

from __future__ import annotations

import os
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from limpet.console import say_json

from . import report, script, sources
from .driver import Driver
from .screen import Screen, counted

DAY_S = 25.0  # how long the day is when nobody says how many sessions it has
KILLS = 5
FILE_NAME = "gateway.limpet"

OK, MISSING, INTERRUPTED = 0, 1, 130


class UsageError(Exception):
    """The demo cannot begin; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says.

    store     where to leave the store; None for a new temporary folder
    sessions  how many to play, whole; None for as many as fit into DAY_S
    kills     how often to kill the worker
    seed      decides who says what and when the kills come; None for another day each time
    source    a folder of transcripts; None for chatterbot-corpus
    json      the result as JSON on standard output, progress on standard error
    """

    store: Path | None = None
    sessions: int | None = None
    kills: int = KILLS
    seed: int | None = None
    source: Path | None = None
    json: bool = False


def run(options: Options) -> int:
    """Play a day.

    returns  0 all is well; 1 something acknowledged is missing, or anything else is wrong with the store; 130 Ctrl-C,
             and all is well
    raises   UsageError, SourceError before anything is written
    """
    if options.store is not None and options.store.exists():
        raise UsageError(f"{options.store} exists; the demo plays on a new store only, to leave yours alone")
    if options.store is not None and not options.store.absolute().parent.is_dir():
        raise UsageError(f"{options.store} cannot be made; there is no folder {options.store.absolute().parent}")
    screen = Screen(sys.stderr if options.json else sys.stdout)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    rng = random.Random(seed)
    if options.source is None:
        screen.status("reading the dialogues of chatterbot-corpus")
        sessions = script.from_corpus(sources.corpus(), rng)
    else:
        sessions = script.from_transcripts(sources.transcripts(options.source), rng)
    if options.sessions is not None:
        sessions = sessions[: options.sessions]
    folder = tempfile.mkdtemp(prefix="limpet-demo-") if options.store is None else None
    path = os.path.join(folder, FILE_NAME) if folder else str(options.store)
    day_s = DAY_S if options.sessions is None else None

    screen.say(report.opening(sessions, path=path, seed=seed, kills=options.kills, day_s=day_s))
    screen.say()
    driver = Driver(path, sessions, kills=options.kills, day_s=day_s, rng=rng, screen=screen)
    day = driver.play()
    result = report.conclude(
        path, day, driver.ledger, seed=seed, source="language" if options.source is None else "transcript"
    )
    if options.json:
        screen.say(counted(len(result.errors), "error") if result.errors else "all is well")
        say_json(result.as_dict(), indent=2)
    else:
        screen.say()
        report.show(result, screen)
    if result.errors:
        return MISSING
    return INTERRUPTED if day.interrupted else OK
