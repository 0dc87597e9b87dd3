"""``t2v-edge serve`` with the tiny bundle, as a process of its own, and with real streams."""

from __future__ import annotations

import asyncio
import json
import signal
from fractions import Fraction

import pytest

from t2v_edge.cli import main, make_parser
from t2v_edge.commands.serve import open_stream
from t2v_edge.remote.protocol import Bye, Control, Hello, Settings, Showing, State
from tests.t2v_edge.commands.test_cli import start
from tests.t2v_edge.live_samples import TIMEOUT_S, a_neighbour, fetch, serving, talking, until


def start_server(bundle_path, *arguments):
    process = start("serve", bundle_path, "--port", "0", "--threads", "1", "--format", "raw", "--json", *arguments)
    return process, json.loads(process.stdout.readline())


class At:
    """A server that runs elsewhere."""

    def __init__(self, url):
        self.url = url


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_it_is_told_to_stop_and_tells_its_clients(bundle_path, number):
    process, serving_line = start_server(bundle_path, "--fps", "30")
    try:
        assert serving_line["event"] == "serving" and serving_line["bundle"] == "tiny"
        assert serving_line["page"] == serving_line["url"].replace("ws:", "http:").replace("/live", "/")

        async def scenario():
            async with talking(At(serving_line["url"]), text="a person is walking") as client:
                assert client.welcome.settings == Settings(Fraction(30), (16, 16), 0, "raw", 85)
                frames = await client.frames(5)
                assert {len(payload) for _, payload in frames} == {16 * 16 * 3}
                process.send_signal(number)
                assert (await client.hear_a(Bye)).reason == "the server stops"

        asyncio.run(scenario())
        out, err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0 and err == b""
        stopped = json.loads(out)
        assert (stopped["event"], stopped["sessions"], stopped["captions"]) == ("stopped", 1, 1)
        assert stopped["frames"] >= 5
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--host", "0.0.0.0"], "there is no token"),
        (["--port", "70000"], "--port is 70000"),
        (["--quality", "0"], "--quality is 0"),
        (["--fps", "500"], "--fps is 500"),
        (["--fps", "x"], "fps is 'x'"),
        (["--size", "9000x9000"], "size is 9000x9000"),
        (["--origin", "app"], "is no origin"),
        (["--max-clients", "0"], "clients is 0"),
        (["--tls-key", "k.pem"], "--tls-cert"),
        (["--seed", "-1"], "seed is -1"),
    ],
)
def test_what_cannot_be_served_is_said_before_anything_is_bound(bundle_path, capsys, monkeypatch, arguments, words):
    monkeypatch.delenv("T2V_EDGE_TOKEN", raising=False)
    assert main(["serve", str(bundle_path), "--port", "0", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_every_stage_of_a_real_stream_is_in_the_metrics_and_what_a_client_had_stays_in_them(pipeline):
    def values_of(body):
        lines = (line.rsplit(" ", 1) for line in body.splitlines() if line[0] != "#")
        return {key: float(value) for key, value in lines}

    async def scenario():
        async with serving(lambda settings: open_stream(pipeline, settings)) as server:
            hello = Hello(settings=Settings(Fraction(60), (16, 16)))
            async with talking(server, hello, "a person is waving") as client:
                await client.frames(10)
                await client.say(Control("set", Settings(fps=Fraction(120))))
                await client.hear_a(State)
                await client.frames(10)
                during = values_of((await fetch(server, "/metrics"))[2])
            await until(lambda: server.client_count == 0)
            return during, values_of((await fetch(server, "/metrics"))[2])

    during, after = asyncio.run(scenario())
    for stage, least in (("text", 0), ("motion", 6), ("render", 20), ("encode", 20), ("send", 20)):
        assert during.get(f't2v_latency_ms_count{{stage="{stage}"}}', 0) >= least, stage
    for values in (during, after):
        made, sent = values["t2v_frames_made_total"], values["t2v_frames_sent_total"]
        dropped = sum(value for key, value in values.items() if key.startswith("t2v_frames_dropped_total"))
        assert sent >= 20 and 0 <= made - sent - dropped <= 2, "but for those that wait, every frame is accounted for"
        assert values["t2v_frames_missed_total"] >= 0 and values["t2v_frames_late_total"] >= 0
    assert after["t2v_frames_made_total"] >= during["t2v_frames_made_total"], "counters never go down"
    assert during['t2v_quality_clients{divisor="1"}'] == 1 and 't2v_quality_clients{divisor="1"}' not in after


def test_quality_is_adapted_unless_it_is_told_not_to(pipeline):
    settings = Settings(Fraction(60), (16, 16))
    for adaptive in (True, False):
        with open_stream(pipeline, settings, adaptive) as stream:
            assert stream.options.adaptive is adaptive
    assert make_parser("serve").parse_args(["serve", "b"]).adaptive
    assert not make_parser("serve").parse_args(["serve", "b", "--no-adaptive"]).adaptive


def test_streams_of_one_pipeline_are_each_clients_own(pipeline):
    async def scenario():
        hello = Hello(settings=Settings(Fraction(60), (16, 16), 3))
        async with serving(lambda settings: open_stream(pipeline, settings)) as server, a_neighbour(server, hello):
            async with talking(server, hello, "a person is running") as client:
                header, payload = await client.hear_a(tuple)
                assert header.time_base == Fraction(1, 60) and len(payload) == 16 * 16 * 3
                for text in ("a person is dancing", "a person is waving", "一个人"):
                    await client.caption(text)
                    generation = (await client.hear_a(Showing)).generation
                    assert all(header.generation == generation for header, _ in await client.frames(3))
                await client.say(Control("set", Settings(fps=Fraction(30), seed=5)))
                state = await client.hear_a(State)
                assert state.settings == Settings(Fraction(30), (16, 16), 5, "raw", 85)
                header, _ = await client.hear_a(tuple)
                assert header.generation == state.generation and header.time_base == Fraction(1, 30)
                await client.say(Control("pause"))
                await client.hear_a(State)
                await client.say(Control("reset"))
                assert (await client.hear_a(State)).generation == state.generation + 1
                await client.say(Control("resume"))
                await client.hear_a(State)
                assert (await client.hear_a(tuple))[0].generation == state.generation + 1

    asyncio.run(scenario())
