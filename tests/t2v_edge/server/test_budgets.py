"""What one client or address may take from the others: waiting places, bytes, frames and pixels."""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2v_edge.errors import ProtocolError
from t2v_edge.remote.protocol import FORMATS, WEBP, Control, Hello, Settings, State
from t2v_edge.server.access import Access
from t2v_edge.server.budget import OF_ADDRESS, OF_ALL, PixelBudget, fit
from t2v_edge.server.connection import PendingConnections, address_of
from t2v_edge.server.limits import Limits
from t2v_edge.server.metrics import Metrics
from tests.t2v_edge.live_samples import DEFAULTS, TIMEOUT_S, a_neighbour, fetch, knock, masked, serving, talking, until
from tests.t2v_edge.mjpeg_samples import asking, mjpeg

TOKEN = "correct-horse-battery"
HUGE = Settings(fps=Fraction(240), size=(4096, 4096))


def a_frame(first: int, data: bytes = b"") -> bytes:
    """A short frame as a client sends it. first: its first byte."""
    mask = os.urandom(4)
    return bytes([first, 0x80 | len(data)]) + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(data))


PING, PONG, FIRST_PART, NEXT_PART = 0x89, 0x8A, 0x01, 0x00
FLOODS = {
    "pings": a_frame(PING) * 5000,
    "pongs": a_frame(PONG) * 5000,
    "pings with data": a_frame(PING, b"x" * 125) * 5000,
    "empty parts": a_frame(FIRST_PART) + a_frame(NEXT_PART) * 5000,
    "parts of one message": a_frame(FIRST_PART) + a_frame(NEXT_PART, b"x") * 5000,
    "empty messages": a_frame(0x81) * 5000,
    "empty binary messages": a_frame(0x82) * 5000,
}


async def is_cut_off(writer, reader, data) -> None:
    """Send `data` and wait until the server ends the connection."""
    try:
        writer.write(data)
        while await asyncio.wait_for(reader.read(65536), TIMEOUT_S):
            pass
    except ConnectionError:
        pass
    writer.close()


@pytest.mark.parametrize("flood", FLOODS)
@pytest.mark.parametrize("in_session", [False, True], ids=["before the hello", "in a session"])
def test_a_flood_below_the_messages_ends_its_own_connection(flood, in_session):
    async def scenario():
        async with serving() as server, a_neighbour(server):
            reader, writer, _ = await knock(server)
            if in_session:
                writer.write(masked('{"type":"hello","versions":[1]}'))
                await until(lambda: server.client_count == 2)
            await is_cut_off(writer, reader, FLOODS[flood])
            await until(lambda: server.client_count == 1 and server.waiting_count == 0)
            if in_session:
                refused = {
                    code: server.metrics.value("t2v_refused_total", code=code) for code in ("too_fast", "binary")
                }
                assert sum(refused.values()) >= 1

    asyncio.run(scenario())


def test_many_small_reads_end_the_connection_as_well():
    async def scenario():
        async with serving(limits=Limits(messages_per_s=1, burst=1)) as server, a_neighbour(server):
            reader, writer, _ = await knock(server)
            writer.write(masked('{"type":"hello","versions":[1]}'))
            await until(lambda: server.client_count == 2)
            writer.write(bytes([0x81, 0xFE, 0x3F, 0xFF]) + b"mask")  # a message of 16 KiB begins, and goes on by bytes
            sent = 0
            while server.client_count == 2 and sent < 16000:
                writer.write(b"x")
                sent += 1
                await asyncio.sleep(0.0005)
            assert server.client_count == 1 and sent < 2000
            writer.close()

    asyncio.run(scenario())


def test_what_a_patient_client_sends_is_no_flood():
    async def scenario():
        async with serving() as server, talking(server, text="a person") as client:
            for number in range(40):
                await client.socket.ping()
                if number % 2 == 0:
                    await client.socket.send(["{", '"type":', '"stats"', "}"])  # a message in four parts
                await asyncio.sleep(0.02)
            await client.frames(1)
            assert server.metrics.value("t2v_refused_total", code="too_fast") == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("silent", ["at once", "after the request"])
def test_silent_connections_do_not_keep_a_client_with_the_token_out(silent, caplog):
    async def scenario():
        async with serving(access=Access(token=TOKEN)) as server:
            mute = []
            for _ in range(100):
                if silent == "at once":
                    mute.append(await asyncio.open_connection("127.0.0.1", server.port))
                else:
                    mute.append((await knock(server))[:2])
            await until(lambda: server.waiting_count == Limits.waiting)
            assert (await fetch(server, "/healthz"))[0] == 200
            async with talking(server, Hello(token=TOKEN), "a person") as client:
                await client.frames(2)
            assert server.pending.ended >= 100 - Limits.waiting
            assert server.metrics.value("t2v_refused_total", code="waiting") == server.pending.ended
            for _, writer in mute:
                writer.close()
            await until(lambda: server.waiting_count == 0)

    with caplog.at_level(logging.INFO):
        asyncio.run(scenario())
    cut = [record for record in caplog.records if "cut off" in record.message]
    assert len(cut) == 1, "one line a minute"
    assert not any(record.exc_info for record in caplog.records)


class Transport:
    """A transport that says what becomes of it."""

    def __init__(self, name, gone):
        self.abort = lambda: gone.append(name)
        self.pause_reading = lambda: None


def test_of_an_address_that_crowds_the_waiting_room_the_oldest_goes():
    async def scenario():
        gone = []
        pending = PendingConnections(Limits(waiting=3), Metrics())
        for address, name in (("a", 1), ("b", 2), ("b", 3), ("b", 4), ("c", 5)):
            pending.add(address, name, Transport(name, gone))
        assert gone == [2, 3] and len(pending) == 3
        pending.discard("a", 1)
        pending.discard("nobody", 9)
        assert len(pending) == 2

    asyncio.run(scenario())


def test_an_address_that_connects_without_end_is_cut_off_and_another_is_not():
    async def scenario():
        gone = []
        pending = PendingConnections(Limits(waiting=5, connections_per_s=5, penalty_s=0.3), Metrics())
        for number in range(30):
            pending.add("a", number, Transport(number, gone))
        assert gone == [*range(5), *range(15, 30)], "ten are let in, five of them wait, and five more are not read"
        pending.add("b", 100, Transport(100, gone))
        await asyncio.sleep(0.5)
        assert gone == [*range(5), *range(15, 30), 5, *range(10, 15)]
        pending.add("a", 101, Transport(101, gone))
        assert 100 not in gone and 101 not in gone

    asyncio.run(scenario())


def test_an_address_is_a_host_or_the_network_of_a_site():
    class Peer:
        def __init__(self, peer):
            self.get_extra_info = {"peername": peer}.get

    assert address_of(Peer(("10.0.0.7", 5))) == "10.0.0.7"
    one, other = (address_of(Peer((f"2001:db8::{last}%eth0", 5, 0, 0))) for last in ("1", "ffff"))
    assert one == other == "2001:db8::/64"
    assert address_of(Peer(None)) == ""


# Pixels.


def cost(settings: Settings) -> float:
    width, height = settings.size
    return width * height * settings.fps * (4 if settings.format == WEBP else 1)


def test_what_fits_is_left_and_more_gets_smaller_before_it_gets_slower():
    small = Settings(Fraction(60), (512, 512), 0, "jpeg", 85)
    assert fit(small, 1 << 24) == small
    assert fit(replace(small, size=(1024, 1024)), 1 << 24).fps == 16
    huge = fit(replace(small, size=(4096, 2048), fps=Fraction(240)), 1 << 24)
    width, height = huge.size
    assert 7 <= huge.fps < 8 and abs(width / height - 2) < 0.01
    assert fit(replace(small, format=WEBP), 1 << 24).fps == 16
    slow = fit(replace(small, size=(4096, 4096), fps=Fraction(1)), 1 << 24)
    assert slow.fps == 1 and slow.size[0] == slow.size[1] == 1548
    assert fit(small, 0.5) is None


settings = st.builds(
    Settings,
    fps=st.fractions(1, 240, max_denominator=1001),
    size=st.tuples(st.integers(1, 4096), st.integers(1, 4096)),
    seed=st.just(0),
    format=st.sampled_from(FORMATS),
    quality=st.just(85),
)


@given(st.lists(st.tuples(st.sampled_from("abc"), settings), min_size=1, max_size=12), st.data())
def test_no_client_address_or_crowd_gets_more_than_its_share_and_the_next_gets_something(asking, data):
    budget = PixelBudget(1 << 24, DEFAULTS)
    granted = {}
    for number, (address, asked) in enumerate(asking):
        granted[number] = (address, budget.grant(number, address, asked))
        if data.draw(st.booleans()):
            gone = data.draw(st.sampled_from(sorted(granted)))
            budget.release(gone)
            del granted[gone]
        costs = [(where, cost(one)) for where, one in granted.values()]
        slack = 1 + 1e-6
        assert all(one <= (1 << 24) * slack for _, one in costs)
        for place in "abc":
            assert sum(one for where, one in costs if where == place) <= OF_ADDRESS * (1 << 24) * slack
        assert sum(one for _, one in costs) <= OF_ALL * (1 << 24) * slack


def test_what_the_server_offers_always_fits_one_client():
    offered = Settings(Fraction(60000, 1001), (3840, 2160), 0, WEBP, 85)
    budget = PixelBudget(1000, offered)
    assert budget.grant("a client", "an address", offered) == offered
    still = Settings(Fraction(1), (4096, 4096), 0, "raw", 85)
    assert PixelBudget(1000, still).grant("a client", "an address", still) == still


def test_a_crowd_that_leaves_nothing_is_refused():
    budget = PixelBudget(100, Settings(Fraction(1), (1, 1), 0, "raw", 85))
    with pytest.raises(ProtocolError, match="as many"):
        for number in range(100):
            budget.grant(number, "an address", Settings(Fraction(1), (10, 10), 0, "raw", 85))


def test_two_greedy_clients_get_a_share_that_is_announced_and_a_third_all_it_asks_for():
    async def scenario():
        async with serving(limits=Limits(pixels_per_s=1 << 20)) as server:
            async with (
                talking(server, Hello(settings=HUGE), "a") as first,
                talking(server, Hello(settings=HUGE), "b") as second,
            ):
                asked = Settings(Fraction(30), (64, 64), format="jpeg")
                async with talking(server, Hello(settings=asked), "c") as third:
                    assert (third.welcome.settings.fps, third.welcome.settings.size) == (30, (64, 64))
                    got = [one.welcome.settings for one in (first, second)]
                    assert all(one.welcome.pixels_per_s == 1 << 20 for one in (first, second, third))
                    assert cost(got[0]) <= 1 << 20 and cost(got[1]) <= 1 << 19
                    header, _ = (await first.frames(1))[0]
                    assert (header.width, header.height) == got[0].size
                await until(lambda: server.client_count == 2)
                await first.say(Control("set", Settings(quality=50)))
                assert replace((await first.hear_a(State)).settings, quality=85) == got[0], "nothing else changes"
                await first.say(Control("set", Settings(size=(64, 64))))
                assert (await first.hear_a(State)).settings.fps > 100, "it asked for 240 before, and more fits again"
                await second.say(Control("set", HUGE))
                more = (await second.hear_a(State)).settings
                assert cost(got[1]) < cost(more) <= 1 << 20, "what others gave back is there"
                await first.say(Control("set", Settings(format=WEBP)))
                assert cost((await first.hear_a(State)).settings) <= 1 << 20

    asyncio.run(scenario())


def test_a_refused_change_keeps_the_share_of_what_goes_on():
    async def scenario():
        async with serving() as server, talking(server, text="a person") as client:
            await client.say(Control("set", Settings(size=(13, 13))))  # the sample stream refuses it
            before = client.welcome.settings
            await client.say(Control("set", Settings(quality=70)))
            assert (await client.hear_a(State)).settings == replace(before, quality=70)
            assert [cost for _, cost in server._budget._taken.values()] == [cost(before)]

    asyncio.run(scenario())


def test_mjpeg_readers_share_the_budget_and_the_waiting_places():
    async def scenario():
        async with mjpeg(limits=Limits(pixels_per_s=1 << 18, waiting=2)) as server:
            async with asking(server, "/stream.mjpg?caption=a&size=4096x4096&fps=240") as (_, status, _):
                assert status == 200
                (session,) = server._sessions
                assert cost(session._playback.settings) <= 1 << 18
                mute = [await asyncio.open_connection("127.0.0.1", server.mjpeg.port) for _ in range(3)]
                await until(lambda: server.waiting_count == 2 and server.pending.ended == 1)
                for _, writer in mute:
                    writer.close()
                await until(lambda: server.waiting_count == 0)
            await until(lambda: server.client_count == 0)

    asyncio.run(scenario())
