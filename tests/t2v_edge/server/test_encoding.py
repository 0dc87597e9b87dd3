"""The commands of docs/encoding.md that need no hardware: run as they stand there, and what they make is looked at."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from t2v_edge.pipeline import Pipeline
from tests.t2v_edge.commands.test_serve import start_server
from tests.t2v_edge.live_samples import TIMEOUT_S

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs/encoding.md").read_text(encoding="utf-8")
COMMANDS = [line.strip() for line in PAGE.splitlines() if line.startswith("    ")]
SIDE = 64  # in place of 256, which takes longer and shows no more
CAPTION = "a person is waving"

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="no ffmpeg: apt install ffmpeg")
GSTREAMER = (
    shutil.which("gst-launch-1.0") is not None
    and not subprocess.run(["gst-inspect-1.0", "--exists", "x264enc"]).returncode
)
needs_gstreamer = pytest.mark.skipif(
    not GSTREAMER,
    reason="no GStreamer with x264: apt install gstreamer1.0-tools gstreamer1.0-plugins-{base,good,bad,ugly}",
)


def command(*words):
    """The one command of the page that has all of these words."""
    found = [line for line in COMMANDS if all(word in line for word in words) and "nvv4l2" not in line]
    assert len(found) == 1, found
    return found[0]


def prepare(line, bundle_path, seconds):
    """The command for the tiny bundle, for frames of another size, and for a time that ends."""
    program = f"{shlex.quote(sys.executable)} -m t2v_edge"
    line = line.replace("t2v-edge run BUNDLE", f"{program} run {shlex.quote(str(bundle_path))}")
    options = f"--fps 30 --seconds {seconds} --size {SIDE}x{SIDE} --threads 1 --engine onnxruntime"
    line = re.sub(" --seconds [0-9]+", "", line).replace("--fps 30", options)
    return line.replace("256x256", f"{SIDE}x{SIDE}").replace("=256", f"={SIDE}")


def run(line, folder):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=environment,
    )
    assert done.returncode == 0, done.stderr


def expected(bundle_path, seconds):
    with Pipeline.open(bundle_path, "onnxruntime", threads=1) as pipeline:
        stream = pipeline.stream(CAPTION, fps=30, seconds=seconds, size=(SIDE, SIDE))
        return [np.array(frame.pixels, np.float32) for frame in stream]


@contextmanager
def listening():
    """A UDP port, and a function that gives the packets that have come, at least `count`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(TIMEOUT_S)
        yield sock.getsockname()[1], lambda count: [sock.recv(65536) for _ in range(count)]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("ffmpeg", "out.mp4"), marks=needs_ffmpeg),
        pytest.param(("gst-launch", "mp4mux"), marks=needs_gstreamer),
    ],
    ids=["ffmpeg", "gstreamer"],
)
def test_a_file_has_every_frame_in_its_colours(bundle_path, tmp_path, words):
    av = pytest.importorskip("av", reason="pip install 't2v-edge[video]'")
    run(prepare(command(*words), bundle_path, 1), tmp_path)
    with av.open(str(tmp_path / "out.mp4")) as video:
        assert video.streams.video[0].average_rate == 30 and video.streams.video[0].codec_context.pix_fmt == "yuv420p"
        frames = [frame.to_ndarray(format="rgb24").astype(np.float32) for frame in video.decode(video=0)]
    wanted = expected(bundle_path, 1)
    assert len(frames) == len(wanted) == 30
    # Noise of a model of random weights is the worst there is to compress; averaged over 8x8 points its colours stay.
    blocks = [
        [picture.reshape(8, SIDE // 8, 8, SIDE // 8, 3).mean((1, 3)) for picture in some] for some in (frames, wanted)
    ]
    right = [np.abs(mine - his).mean() for mine, his in zip(*blocks)]
    swapped = [np.abs(mine[..., ::-1] - his).mean() for mine, his in zip(*blocks)]
    assert max(right) < 12 < np.mean(swapped), "and not blue for red"


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("ffmpeg", "-f rtp"), marks=needs_ffmpeg),
        pytest.param(("gst-launch", "rtph264pay"), marks=needs_gstreamer),
    ],
    ids=["ffmpeg", "gstreamer"],
)
def test_rtp_has_h264_in_time(bundle_path, tmp_path, words):
    with listening() as (port, receive):
        line = prepare(command(*words), bundle_path, 2)
        run(line.replace(":5004", f":{port}").replace("port=5004", f"port={port}"), tmp_path)
        packets = receive(30)
    assert {packet[0] >> 6 for packet in packets} == {2} and {packet[1] & 0x7F for packet in packets} == {96}
    assert len({packet[8:12] for packet in packets}) == 1, "one source"
    sets = {packet[12] & 0x1F for packet in packets}
    assert sets & {7, 24} and sets & {1, 5, 24, 28}, "parameters and pictures, alone, together or in parts"


@needs_ffmpeg
def test_hls_has_segments_that_play(bundle_path, tmp_path):
    run(prepare(command("-f hls"), bundle_path, 3), tmp_path)
    playlist = (tmp_path / "stream.m3u8").read_text()
    assert playlist.startswith("#EXTM3U") and playlist.count(".ts") >= 2
    done = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", "stream.m3u8", "-f", "framecrc", "-"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.stderr == "" and len([line for line in done.stdout.splitlines() if not line.startswith("#")]) >= 60


@needs_ffmpeg
def test_the_servers_mjpeg_is_encoded_live_and_its_caption_changes(bundle_path, tmp_path):
    process, said = start_server(bundle_path, "--mjpeg", "0", "--fps", "30", "--size", f"{SIDE}x{SIDE}")
    try:
        base = said["mjpeg"].removesuffix("/stream.mjpg")
        post = command("curl -d").replace("http://127.0.0.1:8766", base)
        with listening() as (port, receive):
            line = command("ffmpeg -f mpjpeg").replace("http://127.0.0.1:8766", base).replace(":5004", f":{port}")
            encoder = subprocess.Popen(
                shlex.split(line),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                packets = receive(3)
                assert all(packet[0] == 0x47 and len(packet) % 188 == 0 for packet in packets), "MPEG-TS"
                if shutil.which("curl"):
                    done = subprocess.run(shlex.split(post), capture_output=True, text=True, timeout=TIMEOUT_S)
                    assert done.stdout == "taken\n"
                receive(3)
            finally:
                encoder.send_signal(signal.SIGINT)
                assert encoder.communicate(timeout=TIMEOUT_S) and encoder.returncode in (0, 255)
    finally:
        process.terminate()
        process.communicate(timeout=TIMEOUT_S)


@needs_ffmpeg
def test_a_reader_that_ends_ends_the_run(bundle_path, tmp_path):
    line = prepare(command("ffmpeg", "out.mp4"), bundle_path, 600).replace("-i -", "-i - -frames:v 10")
    begun = time.monotonic()
    run(line, tmp_path)
    assert time.monotonic() - begun < TIMEOUT_S and (tmp_path / "out.mp4").is_file()
