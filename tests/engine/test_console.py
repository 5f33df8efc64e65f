"""What both commands print by: escapes, JSON in any encoding, arguments that are checked."""

import argparse
import io
import json
import logging
import sys
import unicodedata

import pytest

from limpet import console

WILD = "".join(map(chr, [*range(0x300), *range(0x2000, 0x2070), 0xFEFF, 0xE0001, 0x10FFFF, 0xD800, 0x1F980]))


def test_what_is_escaped_cannot_steer_and_stays_what_it_is() -> None:
    shown = console.escaped(WILD)
    steering = {char for char in shown if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp", "Co", "Cn")}
    assert steering == set()
    assert {char for char in shown if unicodedata.category(char) == "Cf"} == {"\u200c", "\u200d"}
    assert console.escaped(shown) == shown
    assert console.escaped("\u3000\xe9 \U0001f469\u200d\U0001f4bb") == "\u3000\xe9 \U0001f469\u200d\U0001f4bb"
    assert console.escaped("a\x1b\n\x9b\u202e") == r"a\x1b\n\x9b\u202e"


@pytest.mark.parametrize("ascii_only", [False, True])
def test_json_that_is_escaped_is_the_same_value(ascii_only: bool) -> None:
    value = {WILD: [WILD, {"x": "\n"}]}
    shown = console.escaped_json(json.dumps(value, ensure_ascii=False, indent=2), ascii_only=ascii_only)
    assert json.loads(shown) == value
    assert shown.isascii() == ascii_only
    assert not {char for char in shown if unicodedata.category(char) in ("Cc", "Cs")} - {"\n"}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "utf-16", "cp1252"])
def test_json_is_whole_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    console.say_json(WILD, indent=2)
    sys.stdout.flush()
    assert json.loads(raw.getvalue().decode(encoding)) == WILD


def test_texts_in_arguments_are_utf8_whatever_the_locale_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert console.text("plain") == "plain"
    assert console.text("\xe9\U0001f980") == "\xe9\U0001f980"
    monkeypatch.setattr("limpet.console.os.fsencode", lambda text: text.encode("ascii", "surrogateescape"))
    assert console.text("\udcc3\udca9") == "\xe9", "what the C locale makes of it"
    with pytest.raises(argparse.ArgumentTypeError, match="is not UTF-8"):
        console.text("\udcff")


def test_what_the_libraries_log_is_escaped_too(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> int:
        logging.getLogger("limpet_store").warning("skipped %s", "a\x1b[31m")
        return 0

    assert console.run("name", body, refused=4) == 0
    assert capsys.readouterr().err == "name: warning: skipped a\\x1b[31m\n"
    assert logging.getLogger("limpet_store").handlers == []


def test_an_interrupt_and_a_lost_reader_have_their_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def raising(error: BaseException) -> int:
        raise error

    assert console.run("name", lambda: raising(KeyboardInterrupt()), refused=4) == 130
    assert capsys.readouterr().err == "name: interrupted\n"
    assert console.run("name", lambda: raising(BrokenPipeError()), refused=4) == 141
    assert console.run("name", lambda: raising(OSError(28, "no room")), refused=4) == 4
