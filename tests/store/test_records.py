"""Rows byte for byte, what they default to, what they keep, and what they refuse."""

import dataclasses
import functools
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limpet_store import (
    Approved,
    ExternalJob,
    ExternalJobDelivery,
    ExternalJobKind,
    ExternalJobOrigin,
    ExternalJobStatus,
    PairingState,
    Pending,
    Priority,
    QueuedFile,
    QueuedMessage,
    QueuedTask,
    SessionMeta,
    TaskStatus,
    TitleSource,
    UndecodableError,
    wire,
)
from limpet_store.records import Record, changed

TASK = (
    '{"id":"6f9d7c0e-2b54-4a55-9d0e-0c9a3d1f5a11","session_key":"agent:main:telegram:direct:u1","messages":[{"text":"hel'
    'lo","sender":"u1","channel":"telegram","account":null,"chat_id":"u1","is_group":false,"reply_to":null,"timestamp":1'
    '780000000,"images":[],"files":[]}],"priority":"User","status":"Pending","retries":0,"max_retries":3,"turns":0,"max_'
    'turns":0,"created_at":1780000000,"updated_at":1780000000,"ttl_secs":3600,"content_hash":"5d41402abc4b2a76b9719d9110'
    '17c592","error":null,"notified":false,"last_reply":null}'
)
JOB = (
    '{"id":"b1","session_key":"agent:main:feishu:direct:ou_x","delivery":{"channel":"feishu","target_id":"oc_1","is_g'
    'roup":false,"reply_to":null,"account":null},"origin":"Agent","provider":"seedance","external_task_id":"cgt-2026"'
    ',"kind":"VideoGen","prompt":"a crab surfing","submitted_at":1780000000,"next_poll_at":1780000010,"poll_count":0,'
    '"timeout_at":1780001800,"status":"Pending","error":null,"result_url":null,"result_path":null,"delivered_at":null'
    ',"delivery_attempts":0}'
)
SESSION = (
    '{"session_key":"agent:main:telegram:direct:u1","message_count":5,"last_active":1700000000,"created_at":1699000000,'
    '"generation":1,"title":null,"title_source":null,"pinned":false,"archived":false,"peer_name":null}'
)


def job(**fields: Any) -> ExternalJob:
    return dataclasses.replace(ExternalJob.from_json(JOB), **fields)


@pytest.mark.parametrize(
    ("record", "text"), [(QueuedTask, TASK), (ExternalJob, JOB), (SessionMeta, SESSION)], ids=["task", "job", "session"]
)
def test_a_row_comes_back_byte_for_byte(record: type[QueuedTask], text: str) -> None:
    assert record.from_json(text).to_json() == text
    assert record.from_json(text.encode()).to_json() == text


def test_a_new_task_is_the_example_of_the_specification() -> None:
    task = QueuedTask(
        id="6f9d7c0e-2b54-4a55-9d0e-0c9a3d1f5a11",
        session_key="agent:main:telegram:direct:u1",
        messages=[
            QueuedMessage(text="hello", sender="u1", channel="telegram", chat_id="u1", timestamp=1780000000),
        ],
        created_at=1780000000,
    )
    assert task.to_json() == TASK


def test_a_new_job_is_polled_in_ten_seconds_and_given_up_after_half_an_hour() -> None:
    new = ExternalJob(
        id="b1",
        session_key="agent:main:feishu:direct:ou_x",
        delivery=ExternalJobDelivery(channel="feishu", target_id="oc_1"),
        origin=ExternalJobOrigin.AGENT,
        provider="seedance",
        external_task_id="cgt-2026",
        kind=ExternalJobKind.VIDEO_GEN,
        prompt="a crab surfing",
        submitted_at=1780000000,
    )
    assert new.to_json() == JOB


def test_every_new_record_has_an_id_of_its_own() -> None:
    tasks = [QueuedTask(session_key="s", messages=[]) for _ in range(2)]
    assert tasks[0].id != tasks[1].id


def test_text_is_written_as_utf8_and_control_characters_are_escaped() -> None:
    meta = SessionMeta(session_key='\U0001f980 "\\/\x00\x1f\n\x7f', created_at=1)
    assert meta.to_json().startswith('{"session_key":"\U0001f980 \\"\\\\/\\u0000\\u001f\\n\x7f",')
    assert SessionMeta.from_json(meta.to_json()) == meta


def test_rows_from_before_a_field_existed_get_its_old_value() -> None:
    old_session = '{"session_key":"k","message_count":5,"last_active":2,"created_at":1}'
    assert SessionMeta.from_json(old_session) == SessionMeta(
        session_key="k", message_count=5, last_active=2, created_at=1, generation=1
    )
    old_task = json.loads(TASK)
    for name in ("turns", "max_turns", "error", "notified", "last_reply"):
        del old_task[name]
    del old_task["messages"][0]["account"], old_task["messages"][0]["reply_to"]
    assert QueuedTask.from_json(json.dumps(old_task)).to_json() == TASK
    old_job = json.loads(JOB)
    for name in ("delivered_at", "delivery_attempts", "error", "result_url", "result_path"):
        del old_job[name]
    del old_job["delivery"]["account"], old_job["delivery"]["reply_to"]
    assert ExternalJob.from_json(json.dumps(old_job)).to_json() == JOB


@pytest.mark.parametrize("name", ["id", "session_key", "messages", "priority", "status", "retries", "content_hash"])
def test_a_row_without_a_field_that_was_always_there_is_undecodable(name: str) -> None:
    row = json.loads(TASK)
    del row[name]
    with pytest.raises(UndecodableError, match=name):
        QueuedTask.from_json(json.dumps(row))


def test_unknown_fields_are_kept_on_every_level() -> None:
    row = json.loads(TASK)
    row["novel"] = {"b": 1, "a": [None, 0.5]}
    row["messages"][0]["files"] = [{"filename": "a", "path": "/a", "mime_type": "x/y", "sha": "f"}]
    row["messages"][0]["mood"] = "fine"
    task = QueuedTask.from_json(json.dumps(row))
    assert task.extra == {"novel": {"b": 1, "a": [None, 0.5]}}
    assert json.loads(task.to_json()) == row
    assert QueuedTask.from_json(task.to_json()).to_json() == task.to_json()
    assert json.loads(dataclasses.replace(task, retries=1).to_json())["novel"] == row["novel"]


def test_an_extra_field_cannot_replace_a_known_one() -> None:
    with pytest.raises(ValueError, match="title"):
        SessionMeta(session_key="k", extra={"title": "x"}).to_json()


@pytest.mark.parametrize("number", [-(2**63), -1, 0, 2**63, 2**64 - 1])
def test_integers_of_64_bits_are_kept(number: int) -> None:
    meta = SessionMeta(session_key="k", last_active=number, created_at=number, extra={"n": number})
    assert SessionMeta.from_json(meta.to_json()) == meta


@pytest.mark.parametrize("number", [-(2**63) - 1, 2**64, 10**30])
def test_integers_beyond_64_bits_are_refused(number: int) -> None:
    with pytest.raises(ValueError):
        SessionMeta(session_key="k", last_active=number).to_json()
    with pytest.raises(ValueError):
        SessionMeta(session_key="k", extra={"a": [number]}).to_json()
    with pytest.raises(UndecodableError):
        SessionMeta.from_json(SESSION.replace("1700000000", str(number)))


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, "\ud800", {"\udfff": 1}, {1: 2}, [2**64], 1j, b"bytes", {"a": {1, 2}}],
    ids=repr,
)
def test_what_json_cannot_hold_is_refused(value: object) -> None:
    with pytest.raises(ValueError):
        wire.dumps({"a": [value]})
    with pytest.raises(ValueError):
        SessionMeta(session_key="k", extra={"a": value}).to_json()


@pytest.mark.parametrize(
    "fields",
    [
        {"session_key": 1},
        {"session_key": None},
        {"message_count": "1"},
        {"message_count": True},
        {"message_count": 1.0},
        {"pinned": 0},
        {"title": b"x"},
    ],
    ids=repr,
)
def test_a_field_of_the_wrong_type_is_a_type_error(fields: dict[str, object]) -> None:
    arguments: dict[str, Any] = {"session_key": "k"} | fields
    with pytest.raises(TypeError, match=next(iter(fields))):
        SessionMeta(**arguments).to_json()
    row = json.loads(SESSION)
    with pytest.raises(UndecodableError):
        SessionMeta.from_json(json.dumps(row | dict.fromkeys(fields, 0.5)))


def test_text_with_a_lone_surrogate_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="surrogate"):
        SessionMeta(session_key="\ud800").to_json()
    with pytest.raises(UndecodableError):
        SessionMeta.from_json(SESSION.replace("agent:main", "\\ud800"))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "{}", "NaN", b"\xff", "[" * 100_000])
def test_what_is_no_row_is_undecodable(text: str | bytes) -> None:
    for record in (SessionMeta, QueuedTask, ExternalJob, QueuedMessage, QueuedFile, PairingState):
        with pytest.raises(UndecodableError):
            record.from_json(text)


def test_an_unknown_status_is_undecodable() -> None:
    with pytest.raises(UndecodableError, match="status"):
        QueuedTask.from_json(TASK.replace("Pending", "Paused"))


def test_enums_are_their_text_and_a_status_may_be_given_as_text() -> None:
    assert TaskStatus.PENDING.value == "Pending"
    assert [status.value for status in TaskStatus] == ["Pending", "Running", "Done", "Failed", "Dead"]
    assert ExternalJobStatus.TIMED_OUT.value == "TimedOut"
    assert [source.value for source in TitleSource] == ["auto", "user"]
    assert job(status="Done").status is ExternalJobStatus.DONE
    with pytest.raises(ValueError):
        job(status="Lost")
    changed = job()
    changed.status = "Lost"  # type: ignore[assignment]  # that is the point
    with pytest.raises(ValueError):
        changed.to_json()


def test_priorities_are_ordered_by_urgency_and_not_by_text() -> None:
    assert Priority.SYSTEM < Priority.CRON < Priority.USER
    assert sorted(Priority, reverse=True) == [Priority.USER, Priority.CRON, Priority.SYSTEM]
    assert Priority.SYSTEM <= Priority.SYSTEM
    assert Priority.USER >= Priority.CRON
    assert max(Priority) is Priority.USER


def test_pairing_states() -> None:
    assert Approved().to_json() == '"Approved"'
    pending = '{"Pending":{"code":"ABCD-2345","expires_at":1780003600}}'
    assert Pending("ABCD-2345", 1780003600).to_json() == pending
    assert PairingState.from_json(pending) == Pending("ABCD-2345", 1780003600)
    assert Pending.from_json(pending) == Pending("ABCD-2345", 1780003600)
    assert PairingState.from_json('"Approved"') == Approved()
    with pytest.raises(UndecodableError):
        Pending.from_json('"Approved"')


@pytest.mark.parametrize(("ttl", "age", "expired"), [(0, 10**9, False), (3600, 3600, False), (3600, 3601, True)])
def test_a_task_expires_when_it_is_older_than_its_time_to_live(ttl: int, age: int, expired: bool) -> None:
    task = dataclasses.replace(QueuedTask.from_json(TASK), ttl_secs=ttl)
    assert task.is_expired(1780000000 + age) is expired


def test_a_job_needs_delivery_once_it_has_ended() -> None:
    assert not job().needs_delivery()
    assert job(status="Failed").needs_delivery()
    assert job(status="TimedOut").needs_delivery()
    assert not job(status="Done", delivered_at=5).needs_delivery()


def test_a_job_is_polled_often_at_first() -> None:
    assert [job(poll_count=count).next_poll_delay() for count in (0, 11, 12, 99)] == [10, 10, 60, 60]
    assert not job().is_timed_out(1780001800)
    assert job().is_timed_out(1780001801)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(JSON_VALUES)
def test_json_comes_back_as_it_was(value: object) -> None:
    text = wire.dumps(value)
    assert wire.loads(text) == value
    assert wire.loads(text.encode()) == value
    assert wire.dumps(wire.loads(text)) == text


ODD: list[Any] = [
    None,
    True,
    0,
    1,
    2**62,
    -(2**62),
    2**64,
    0.5,
    "",
    "x",
    '\u4e16"',
    "\ud800",
    "Pending",
    "auto",
    b"x",
    [],
    ["x"],
]
ODD += [{}, {"code": "x"}, TaskStatus.DONE, Priority.USER, TitleSource.AUTO, type("Text", (str,), {})("x")]
ODD += [ExternalJobDelivery(channel="c", target_id="\ud800"), QueuedFile(filename="a", path="/a", mime_type="x/y")]
SAMPLES: dict[str, Any] = {"task": QueuedTask.from_json(TASK), "session": SessionMeta.from_json(SESSION), "job": job()}
SAMPLES |= {"message": SAMPLES["task"].messages[0], "delivery": SAMPLES["job"].delivery, "code": Pending("a", 1)}


def outcome(call: Any, *args: Any) -> object:
    """What a call gives or raises, to be compared."""
    try:
        found = call(*args)
    except Exception as error:  # noqa: BLE001  # whichever it is, the other call must raise it too
        return type(error), str(error)
    return type(found), repr(found)


@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_the_generated_code_writes_and_reads_what_the_checks_field_by_field_do(name: str, data: st.DataObject) -> None:
    record = dataclasses.replace(SAMPLES[name])
    kind = type(record)
    names = [field.name for field in dataclasses.fields(record) if field.name in kind._known or field.name == "extra"]
    row = record.to_dict()
    for field in data.draw(st.lists(st.sampled_from(names), max_size=2)):
        value = data.draw(st.sampled_from(ODD if field != "extra" else [{}, {"novel": 1}, {names[0]: 1}]))
        setattr(record, field, value)
        row[field] = value
        if data.draw(st.booleans()):
            del row[field]
    left_out = data.draw(st.sampled_from([None, "messages", "nothing"]))
    to_json = functools.partial(Record.to_json, record, leave_out=left_out)  # Pending's own puts its name before it
    assert outcome(to_json) == outcome(lambda: wire.encode(record.to_dict(leave_out=left_out)))
    assert outcome(kind.from_dict, row) == outcome(kind._checked, row)


def test_a_copy_is_what_dataclasses_replace_gives() -> None:
    for record in SAMPLES.values():
        assert changed(record) == record
        assert changed(record) is not record
        assert changed(record, extra={"novel": 1}) == dataclasses.replace(record, extra={"novel": 1})
    task = SAMPLES["task"]
    task.attempts, task.arrival = 3, 7
    assert (changed(task).attempts, changed(task).arrival) == (3, 7)
    assert changed(task, status="Done").status is TaskStatus.DONE, "a status may be given as text"
    special: Any = dataclasses.make_dataclass("Special", [("more", int, 1)], bases=(QueuedTask,), kw_only=True)
    mine = special(session_key="s", messages=[], created_at=1, more=2)
    assert (type(changed(mine)), changed(mine).more) == (special, 2)
    assert type(special.from_dict(mine.to_dict())) is special


@given(st.binary() | st.text())
def test_any_text_is_read_or_refused(text: str | bytes) -> None:
    for record in (SessionMeta, QueuedTask, ExternalJob, PairingState):
        with pytest.raises(UndecodableError):
            record.from_json(text if text != '"Approved"' else "")
