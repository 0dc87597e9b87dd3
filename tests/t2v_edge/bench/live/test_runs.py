"""``t2v-edge bench --live`` over real sockets: a server of its own with the tiny bundle, or one that is made up."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time

import pytest

from t2v_edge.bench.live import run as module
from t2v_edge.bench.live.hostile import KINDS, HostileClients
from t2v_edge.cli import main
from t2v_edge.server.limits import Limits
from t2v_edge.server.session import Playback
from tests.t2v_edge.commands.test_cli import start
from tests.t2v_edge.live_samples import TIMEOUT_S, FakeStream, InBackground, a_neighbour, serving, until

OWN = ("--engine", "onnxruntime", "--threads", "1", "--format", "raw")


@pytest.fixture(autouse=True)
def hasty(monkeypatch):
    monkeypatch.setattr(module, "WARM_S", 0.2)
    monkeypatch.setattr(module, "SAMPLE_S", 0.1)
    monkeypatch.delenv("T2V_EDGE_TOKEN", raising=False)


def run_json(capsys, *arguments, code=0):
    assert main(["bench", *map(str, arguments), "--live", "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_captions_go_the_whole_way_through_a_server_of_its_own(bundle_path, tmp_path, capsys):
    target = tmp_path / "live.json"
    found = run_json(
        capsys,
        bundle_path,
        *OWN,
        "--fps",
        "50",
        "--clients",
        "2",
        "--switches",
        "4",
        "--every",
        "0.25",
        "--report",
        target,
    )
    run, server = found["run"], found["run"]["server"]
    assert json.loads(target.read_text("utf-8")) == found
    assert (found["format"], found["bundle"], found["width"], found["frame_format"]) == (
        "t2v-bench-live",
        "tiny",
        16,
        "raw",
    )
    assert run["captions"] == run["answered"] == 8 and run["lost_captions"] == run["old"] == 0
    assert run["caption_to_first_frame"]["count"] == 8 and run["caption_to_first_frame"]["p95_ms"] > 0
    assert len(run["client_fps"]) == 2 and 0 < min(run["client_fps"]) and run["frames"] > 20
    assert run["jitter_p95_ms"] > 0 and run["cue_to_first_frame"] is None and run["broken"] is None
    # The server's figure ends where the client's goes on, and begins after it.
    assert 0 < server["caption_to_sent_median_ms"] and server["caption_to_sent_p95_ms"] > 0
    assert set(server["stages"]) == {"text", "motion", "render", "encode", "send", "caption"}
    assert server["stages"]["render"]["count"] >= run["frames"] and server["memory"]["peak_mib"] > 1
    assert sum(server["clients_by_divisor"].values()) == 2 and server["memory"]["cpu_share"] > 0
    assert found["engines"]["render"] == "onnxruntime" and found["variants"]["render"] == "fp32"
    assert found["alone"] is None and found["failed"] == [] and str(bundle_path) not in json.dumps(found)


def test_cues_of_a_file_are_played_in_time_and_a_limit_that_is_not_kept_is_exit_code_3(bundle_path, tmp_path, capsys):
    cues = tmp_path / "story.vtt"
    cues.write_text(
        "WEBVTT\n\n00:00.200 --> 00:00.500\na person is walking\n\n00:00.500 --> 00:00.900\na person is running\n"
    )
    found = run_json(
        capsys,
        bundle_path,
        *OWN,
        "--fps",
        "50",
        "--captions",
        cues,
        "--max-cue-ms",
        "0.01",
        "--max-p95-ms",
        "60000",
        code=3,
    )
    cue = found["run"]["cue_to_first_frame"]
    assert cue["count"] == 2 and 0 < cue["p50_ms"] <= cue["p95_ms"] <= cue["max_ms"]
    assert cue["p50_ms"] >= found["run"]["caption_to_first_frame"]["p50_ms"], "a cue is never sent before its time"
    assert len(found["failed"]) == 1 and found["failed"][0].startswith("cue to first frame, p95")


def test_a_server_that_runs_already_is_measured_and_people_are_told(capsys):
    with InBackground() as server:
        code = main(["bench", "--live", "--server", server.url, "--seconds", "0.6", "--every", "0.2"])
        said = capsys.readouterr().out
    assert code == 0 and "tiny, live: 1 client at 100 fps, 8x6 raw" in said
    assert "caption to first frame" in said and "0 of an old caption" in said


def test_a_frame_of_an_old_caption_fails_the_measurement(capsys, monkeypatch):
    class Stubborn(FakeStream):
        """Gives frames of the generation before, as though nothing had been changed."""

        async def __aiter__(self):
            async for frame in super().__aiter__():
                yield (
                    frame
                    if frame.index % 5
                    else type(frame)(
                        frame.pixels,
                        frame.index,
                        frame.pts,
                        frame.time_base,
                        max(frame.generation - 1, 0),
                        frame.caption,
                    )
                )

    monkeypatch.setattr(Playback, "is_current", lambda self, made: True)
    with InBackground(make=Stubborn) as server:
        found = run_json(capsys, "--server", server.url, "--seconds", "0.6", "--every", "0.2", code=3)
    assert found["run"]["old"] > 0 and "of an old caption" in found["failed"][0]


def test_a_stream_that_is_lost_ends_the_run_and_what_was_measured_is_said(capsys):
    class Mortal(FakeStream):
        def set_caption(self, caption):
            generation = super().set_caption(caption)
            if generation == 3:
                self.caption = "broken"
            return generation

    with InBackground(make=Mortal) as server:
        found = run_json(capsys, "--server", server.url, "--seconds", "20", "--every", "0.1", code=3)
    assert "lost its stream" in found["run"]["broken"] and found["run"]["answered"] >= 2
    assert found["run"]["seconds"] < 10


def test_beside_adversaries_the_others_are_measured_twice(capsys):
    with InBackground(limits=Limits(stall_s=0.5, penalty_s=0.1)) as server:
        found = run_json(
            capsys,
            "--server",
            server.url,
            "--seconds",
            "1",
            "--every",
            "0.2",
            "--clients",
            "2",
            "--mute",
            "1",
            "--flood",
            "1",
            "--max-slowdown",
            "1000000",
            "--max-loss",
            "100",
        )
        refused = server.metrics.value("t2v_refused_total", code="too_fast")
    hostile = found["run"]["adversaries"]
    assert found["alone"]["adversaries"] is None and found["alone"]["answered"] >= 8
    assert refused >= 1 and hostile["flood_sessions"] > refused - 1, "thrown out, it comes back"
    assert hostile["flood_captions"] >= 60 and hostile["mute_sessions"] >= 1
    assert found["slowdown_percent"] is not None and found["run"]["answered"] >= 8
    rates = zip(found["alone"]["client_fps"], found["run"]["client_fps"])
    assert found["loss_percent"] == pytest.approx(max(100 * (1 - after / before) for before, after in rates))


def sizes(server):
    return [stream.settings.size for stream in server.made]


def test_foes_of_each_kind_are_borne_and_leave_when_they_are_told():
    async def scenario():
        async with serving(limits=Limits(stall_s=0.3, penalty_s=0.1)) as server, a_neighbour(server):
            async with HostileClients(server.url, None, None, dict.fromkeys(KINDS, 1)) as hostile:
                await until(lambda: server.metrics.value("t2v_refused_total", code="too_fast") >= 2)
                await until(lambda: any(size[0] > 100 for size in sizes(server)))
                await asyncio.sleep(0.5)
            counts = hostile.counts
            assert counts.flood_sessions >= 2 and counts.mute_sessions >= 1 and counts.silent_sessions >= 1
            assert counts.greedy_sessions >= 1 and counts.greedy_frames >= 1 and counts.wire_flood_sessions >= 2
            assert all(width * height < 1 << 23 for width, height in sizes(server))
            await until(lambda: server.client_count == 1)

    asyncio.run(scenario())


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGINT to send")
def test_ctrl_c_says_what_was_measured_so_far_and_leaves_no_server_behind(bundle_path):
    process = start("bench", bundle_path, "--live", *OWN, "--fps", "50", "--seconds", "600", "--every", "0.2", "--json")
    try:
        server = None
        begun = time.monotonic()
        while server is None and time.monotonic() - begun < TIMEOUT_S:
            with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
                server = next(iter(file.read().split()), None)
            time.sleep(0.05)
        time.sleep(4.5)  # the server comes up, two seconds of warm-up, and a little more
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=TIMEOUT_S)
        found = json.loads(out)
        assert process.returncode == 130 and found["interrupted"] is True and err == b""
        assert found["run"]["seconds"] < 60
        assert not os.path.exists(f"/proc/{server}")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["--live"], 2, "give a bundle"),
        (["{b}", "--clients", "2"], 2, "--clients goes with --live"),
        ([], 2, "give a bundle"),
        (["{b}", "--max-p95-ms", "5"], 2, "--max-p95-ms goes with --live"),
        (["{b}", "--live", "--ahead"], 2, "--ahead does not go with --live"),
        (["{b}", "--live", "--server", "ws://127.0.0.1:1/live"], 2, "leave one of them out"),
        (["--live", "--server", "ws://127.0.0.1:1/live"], 1, "cannot be reached"),
        (["{b}", "--live", "--clients", "0"], 2, "--clients is 0"),
        (["{b}", "--live", "--switches", "0"], 2, "--switches is 0"),
        (["{b}", "--live", "--captions", "absent.vtt"], 1, "cannot be read"),
        (["{b}", "--live", "--report", "x.txt"], 2, ".json"),
        (["{b}", "--live", "--engine", "onnxruntime", "--variant", "int9"], 1, "variant 'int9' is not in the bundle"),
        (["absent", "--live"], 1, "t2v-edge export"),
    ],
)
def test_errors_name_the_remedy(bundle_path, capsys, monkeypatch, tmp_path, arguments, code, words):
    assert main(["bench", *(word.replace("{b}", str(bundle_path)) for word in arguments)]) == code
    captured = capsys.readouterr()
    assert words in captured.err and captured.out == ""
