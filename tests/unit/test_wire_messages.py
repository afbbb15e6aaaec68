"""Messages: a closed schema, checked field by field from the definitions themselves."""

from dataclasses import fields

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlm_sandbox.wire import messages as m
from rlm_sandbox.wire.frames import FrameDecoder, FrameError, encode, parse_header

pytestmark = pytest.mark.unit

ALL = (*m.HOST_TO_AGENT, *m.AGENT_TO_HOST, *m.HOST_TO_KERNEL, *m.KERNEL_TO_HOST)
plain = st.characters(exclude_categories=["Cs"])


def values(check):  # noqa: PLR0911 - one line for each kind of check
    """Return a strategy for what one field may hold, read off its own check."""
    if isinstance(check, m._Int):
        return st.integers(check.low, check.high)
    if isinstance(check, m._Str):
        return st.text(plain, max_size=min(check.limit, 40))
    if isinstance(check, m._Bool):
        return st.booleans()
    if isinstance(check, m._OneOf):
        return st.sampled_from(sorted(check.values))
    if isinstance(check, m._Optional):
        return st.none() | values(check.item)
    if isinstance(check, m._ListOf):
        return st.lists(values(check.item), max_size=min(check.limit, 4))
    assert isinstance(check, m._Record)
    return st.fixed_dictionaries({name: values(item) for name, item in check.shape.items()})


@st.composite
def any_message(draw):
    cls = draw(st.sampled_from(ALL))
    header = {name: draw(values(check)) for name, check in m._field_checks(cls).items()}
    if cls.payload_max:
        header["payload"] = draw(st.binary(max_size=min(cls.payload_max, 200)))
    return cls(**header)


def read_back(raw, *classes):
    decoder = FrameDecoder()
    decoder.feed(raw)
    header, payload = decoder.next_frame()
    return m.parser(classes)(header, payload)


@given(any_message())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_message_survives_the_wire(message):
    assert read_back(message.encode(), type(message)) == message


@given(any_message(), st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_message_with_one_field_too_many_too_few_or_of_another_type_is_refused(message, data):
    decoder = FrameDecoder()
    decoder.feed(message.encode())
    header, payload = decoder.next_frame()
    parse = m.parser((type(message),))
    with pytest.raises(FrameError):
        parse({**header, "base_url": "x"}, payload)
    names = [name for name in header if name != "t"]
    if names:
        name = data.draw(st.sampled_from(names))
        with pytest.raises(FrameError):
            parse({key: value for key, value in header.items() if key != name}, payload)
        with pytest.raises(FrameError):
            parse({**header, name: {"no": ["field", "is", "this"]}}, payload)


def test_types_are_exact_so_true_is_not_one():
    good = {"t": "cell_end", "cell": 1}
    assert m.parser((m.CellEnd,))(dict(good), b"") == m.CellEnd(cell=1)
    for wrong in (True, "1", None, 0, -1, 2**53):
        with pytest.raises(FrameError):
            m.parser((m.CellEnd,))({**good, "cell": wrong}, b"")


def test_a_peer_may_send_only_its_own_messages():
    parse = m.parser(m.KERNEL_TO_HOST)
    for message in (m.Bye(), m.Go(payload=b"{}"), m.Interrupt(cell=1), m.KernelUp(gen=1)):
        header = parse_header(
            encode(
                {
                    "t": message.TYPE,
                    **{f.name: getattr(message, f.name) for f in fields(message) if f.name != "payload"},
                }
            )[8:]
        )
        with pytest.raises(FrameError):
            parse(header, b"")
    for kind in (None, 1, [], {}, "nonsense", "__class__"):
        with pytest.raises(FrameError):
            parse({"t": kind}, b"")
    with pytest.raises(FrameError):
        parse({}, b"")


def test_a_payload_where_none_is_allowed_or_beyond_its_limit_is_refused():
    with pytest.raises(FrameError):
        m.parser((m.Ready,))({"t": "ready"}, b"x")
    with pytest.raises(FrameError):
        m.parser((m.Output,))({"t": "output", "cell": 0}, b"x" * (m.OUTPUT_CHUNK + 1))
    assert m.parser((m.Output,))({"t": "output", "cell": 0}, b"x" * m.OUTPUT_CHUNK).payload


def test_records_are_closed_too():
    entry = {"name": "x", "type": "int", "len": None}
    header = {"t": "result", "cell": 1, "status": "ok", "variables": [entry], "variables_total": 1, "warnings": []}
    parse = m.parser((m.Result,))
    assert parse(dict(header), b"").variables == [entry]
    for wrong in (
        {**entry, "repr": "x"},
        {"name": "x"},
        {**entry, "len": -1},
        {**entry, "name": "x" * 129},
        [entry],
        "x",
    ):
        with pytest.raises(FrameError):
            parse({**header, "variables": [wrong]}, b"")
    with pytest.raises(FrameError):
        parse({**header, "variables": [entry] * (m.VARIABLES_MAX + 1)}, b"")


def test_an_ask_cannot_smuggle_a_url_a_header_or_a_tool():
    ask = m.Ask(
        id=1, group=1, size=1, width=0, ordinal=0, system=None, prefix=None, schema=None, model="m", max_tokens=None,
        thinking_budget=None, cache=True, sample=0, payload=b"p",
    )  # fmt: skip
    decoder = FrameDecoder()
    decoder.feed(ask.encode())
    header, payload = decoder.next_frame()
    for name in ("base_url", "headers", "tools", "api_key", "extra_body"):
        with pytest.raises(FrameError):
            m.parser(m.KERNEL_TO_HOST)({**header, name: "x"}, payload)


def test_no_two_messages_of_one_direction_share_a_type():
    for direction in (m.HOST_TO_AGENT, m.AGENT_TO_HOST, m.HOST_TO_KERNEL, m.KERNEL_TO_HOST):
        assert len({cls.TYPE for cls in direction}) == len(direction)


def test_messages_are_values_that_do_not_change():
    one, other = m.CellEnd(cell=1), m.CellEnd(cell=1)
    assert one == other
    assert hash(one) == hash(other)
    assert one != m.CellEnd(cell=2)
    assert one != m.Interrupt(cell=1)
    assert repr(one) == "CellEnd(cell=1)"
    with pytest.raises(AttributeError):
        one.cell = 2
