"""The keys of the reference gateway in both dialects, and where they can be read in two ways."""

from __future__ import annotations

import pytest

from limpet_store.redb.dialect import Pair, agent_of, channel_of, message_key, pair_key

GROUP = "agent:a:c:group:G"
TOPIC = GROUP + ":topic:5"
KNOWN = {GROUP, TOPIC, "archive", "archive:x:gen1", "archive:y:gen1", "y"}


@pytest.mark.parametrize(
    ("key", "session", "generation", "seq"),
    [
        (f"{GROUP}:{7:016}", GROUP, None, 7),
        (f"{GROUP}\0{7:016}", GROUP, None, 7),
        (f"{TOPIC}:{7:016}", TOPIC, None, 7),
        (f"archive:{TOPIC}:gen12:{3:016}", TOPIC, 12, 3),
        (f"archive\0{TOPIC}\0gen12\0{3:016}", TOPIC, 12, 3),
        (f"archive\0{TOPIC}\0gen1\x003", TOPIC, 1, 3),
        (f"archive:gone:gen2:gen3:{3:016}", "gone:gen2", 3, 3),
        (f"archive:{3:016}", "archive", None, 3),
        (f"archive:{GROUP}:{3:016}", f"archive:{GROUP}", None, 3),
        (f"line\nbreak:{3:016}", "line\nbreak", None, 3),
        (f"{GROUP}:{2**62 - 1}", GROUP, None, 2**62 - 1),
    ],
)
def test_message_keys(key: str, session: str, generation: int | None, seq: int) -> None:
    found = message_key(key, KNOWN)
    assert found is not None
    assert (found.session, found.generation, found.seq, found.doubt) == (session, generation, seq, None)


@pytest.mark.parametrize(
    "key",
    [
        "",
        ":",
        "x",
        "x:",
        "x:y",
        f":{3:016}",
        f"x:{2**62}",  # those that follow need numbers too
        "x:" + "9" * 5000,
        "x:\u0663",
        "x: 3",
        "x:-3",
        "x:3\n",
        "x:03",
    ],
)
def test_other_texts_are_no_message_keys(key: str) -> None:
    assert message_key(key, KNOWN) is None


def test_a_session_called_like_an_archive_is_told_apart_by_the_known_sessions() -> None:
    only_active = message_key(f"archive:x:gen1:{3:016}", KNOWN)
    assert only_active is not None
    assert (only_active.session, only_active.generation) == ("archive:x:gen1", None)
    assert "'x'" in (only_active.doubt or "")
    both = message_key(f"archive:y:gen1:{3:016}", KNOWN)
    assert both is not None
    assert (both.session, both.generation) == ("y", 1)
    assert "'archive:y:gen1'" in (both.doubt or "")


def test_a_short_number_of_an_unknown_session_is_doubtful() -> None:
    doubtful = message_key("agent:main:x:topic:5", KNOWN)
    assert doubtful is not None
    assert doubtful.doubt is not None
    for generation in ("0", "01", str(2**32)):
        none = message_key(f"archive:{GROUP}:gen{generation}:{3:016}", KNOWN)
        assert none is not None
        assert (none.session, none.generation) == (f"archive:{GROUP}:gen{generation}", None)
        assert f"no generation {generation}" in (none.doubt or "")
    fine = message_key(f"{GROUP}:5", KNOWN)
    assert fine is not None
    assert fine.doubt is None
    assert not fine.padded


def test_pairs() -> None:
    assert pair_key("telegram:u1", ":", set()) == Pair("telegram", "u1")
    assert pair_key("telegram:", ":", set()) == Pair("telegram", "")
    assert pair_key("matrix:@u:server", ":", {"matrix"}) == Pair("matrix", "@u:server")
    assert pair_key("my:channel:u", ":", {"my:channel"}) == Pair("my:channel", "u")
    unknown = pair_key("matrix:@u:server", ":", set())
    assert unknown is not None
    assert (unknown.first, unknown.second) == ("matrix", "@u:server")
    assert "'matrix:@u'" in (unknown.doubt or "")
    assert pair_key("main\0app", "\0", set()) == Pair("main", "app")
    assert pair_key("main", "\0", set()) is None


def test_what_session_keys_say() -> None:
    assert (agent_of(TOPIC), channel_of(TOPIC)) == ("a", "c")
    assert (agent_of("heartbeat:x"), channel_of("heartbeat:x")) == (None, None)
