from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lychee_server.sse import EventSplitter, dump_json, event_data, parse_object


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_events_are_cut_at_blank_lines_however_they_arrive(end, size):
    events = [b"data: one" + end, b": comment" + end, "data: zwölf".encode() + end]
    stream = b"".join(events) + b"data: unfinished"
    splitter = EventSplitter()
    found = [event for at in range(0, len(stream), size) for event in splitter.feed(stream[at : at + size])]
    assert found == events


@given(st.lists(st.binary(max_size=9), max_size=9))
def test_no_byte_is_lost_or_moved(pieces):
    splitter = EventSplitter()
    passed = b"".join(event for piece in pieces for event in splitter.feed(piece))
    assert b"".join(pieces).startswith(passed)
    rest = b"".join(pieces)[len(passed) :]
    assert b"\n\n" not in rest


def test_data_of_an_event():
    assert event_data(b"data: {}\n\n") == b"{}"
    assert event_data(b"data:{}\r\n\r\n") == b"{}"
    assert event_data(b"id: 3\ndata: a\ndata:  b\n\n") == b"a\n b"
    assert event_data(b": keep-alive\n\n") == b""


def test_json_of_the_engine():
    assert parse_object(b'{"a": 1}') == {"a": 1}
    assert parse_object(b"[1]") is None
    assert parse_object(b"{") is None
    assert parse_object(b"[" * 100_000) is None


def test_written_json_is_compact_utf8_and_survives_half_a_surrogate_pair():
    assert dump_json({"a": "你", "b": 1}) == '{"a":"你","b":1}'.encode()
    assert json.loads(dump_json({"a": "\ud83d"})) == {"a": "\ud83d"}
