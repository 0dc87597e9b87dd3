"""The C++ example: built with all warnings as errors, with the sanitizers, and run against servers, bad ones too."""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
import time
from contextlib import ExitStack

import numpy as np
import pytest

from t2v_edge.server.access import Access
from t2v_edge.server.limits import Limits
from tests.examples.ar_vr import EXAMPLES, Process, build
from tests.examples.hostile import BAD_ANSWERS, BAD_FRAMES, BAD_FRAMING, FLOODS, serving_badly
from tests.t2v_edge.live_samples import TIMEOUT_S, InBackground
from tests.t2v_edge.server.test_refusals import TOKEN

CPP = EXAMPLES / "cpp"
MOST_BYTES = 256 << 20  # of address space: the program, its libraries and stacks, and one message of 64 MiB
# Where an error is not one's own it may come by another way: by silence, for example.
WHY = {
    "wrong accept": "did not accept the handshake",
    "no accept": "did not accept the handshake",
    "odd head": "did not accept the handshake",
    "not found": "refused: HTTP/1.1 404",
    "endless head": "head is too long",
    "mute": "does not answer",
    "masked": "(bits)",
    "reserved bits": "(bits)",
    "odd opcode": "(fragments)",
    "long ping": "(control frame)",
    "split ping": "(control frame)",
    "no start": "(fragments)",
    "two starts": "(fragments)",
    "no UTF-8": "not UTF-8",
    "surrogate": "not UTF-8",
    "close": "1008 token: wrong",
    "huge length": "bytes at once",
    "huge text": "16384 bytes at once",
    "endless text": "16384 bytes at once",
    "half a frame": "connection is lost",
    "no frame": "no frame of version 1",
    "short frame": "not as long",
    "cut header": "no frame of version 1",
    "other version": "no frame of version 1",
    "wrong width": "not as long",
    "early payload": "not as long",
    "huge payload": "not as long",
    "late pts": "out of range",
    "no time base": "out of range",
    "other format": "out of range",
    "no width": "out of range",
    "text": "no JSON object",
    "deep": "no JSON object",
    "half text": "no JSON object",
    "wild generation": "out of range",
    "long text": "16384 bytes at once",
}
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler: apt install g++")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("cpp") / "t2v-view"
    build(
        "g++",
        "-std=c++17",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Wpedantic",
        "-Wconversion",
        "-Werror",
        "-pthread",
        CPP / "main.cpp",
        "-o",
        path,
    )
    return path


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """The same with the address and undefined-behaviour sanitizers."""
    path = tmp_path_factory.mktemp("cpp") / "t2v-view-checked"
    build(
        "g++",
        "-std=c++17",
        "-O1",
        "-g",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        "-pthread",
        CPP / "main.cpp",
        "-o",
        path,
    )
    return path


def view(program, *words, limit=None, stdin=""):
    """(exit code, stdout as bytes, stderr) of a run that ends by itself."""

    def bound():
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    done = subprocess.run(
        [str(program), *words],
        input=stdin.encode(),
        capture_output=True,
        timeout=TIMEOUT_S,
        preexec_fn=bound if limit else None,
    )
    return done.returncode, done.stdout, done.stderr.decode()


def test_frames_come_at_their_rate_and_the_last_one_is_written(program, tmp_path):
    with InBackground() as server:
        code, out, err = view(
            program,
            server.url,
            "a person",
            "--seconds",
            "1.5",
            "--fps",
            "50",
            "--size",
            "10x8",
            "--ppm",
            tmp_path / "last.ppm",
        )
    assert (code, out) == (0, b"") and "showing: a person" in err
    fps = float(re.search(r"([0-9.]+) fps", err)[1])
    assert 10 < fps < 60, "50 a second, less what a busy machine loses"
    assert (tmp_path / "last.ppm").read_bytes() == b"P6\n10 8\n255\n" + bytes(10 * 8 * 3)


@pytest.mark.parametrize("build_name", ["program", "checked"])
def test_a_line_typed_changes_the_picture_and_no_old_frame_follows(request, monkeypatch, build_name):
    path = request.getfixturevalue(build_name)
    monkeypatch.setenv("T2V_EDGE_TOKEN", TOKEN)
    with InBackground(access=Access(token=TOKEN)) as server:
        with Process(path, server.url, "a person", "--raw", "--seconds", "3") as client:
            for turn in range(1, 4):
                time.sleep(0.5)
                client.say(f'一个人 "{turn}" \\')
            code, out, err = client.end()
    assert code == 0, err
    frames = np.frombuffer(out, np.uint8).reshape(-1, 6, 8, 3)
    assert (frames == frames[:, :1, :1, :1]).all(), "each frame is whole"
    shown = frames[:, 0, 0, 0].astype(int)
    assert sorted(set(shown)) == [0, 1, 2, 3] and list(shown) == sorted(shown)
    assert server.made[0].caption == '一个人 "3" \\'


@pytest.mark.parametrize("kind", [*BAD_ANSWERS, *BAD_FRAMES, *BAD_FRAMING])
@pytest.mark.parametrize("build_name", ["program", "checked"])
def test_a_server_that_breaks_the_protocol_is_refused_in_bounded_time_and_memory(request, build_name, kind):
    path = request.getfixturevalue(build_name)
    limit = MOST_BYTES if build_name == "program" else None  # the sanitizers reserve more than there is
    with serving_badly(kind) as url:
        code, out, err = view(path, url, "a person", "--seconds", "10", "--timeout", "1", "--raw", limit=limit)
    assert (code, out) == (1, b""), err
    assert re.fullmatch(r"(showing: x\n)?t2v-view: the .*|(showing: x\n)?t2v-view: an? .*", err.strip()), err
    assert WHY.get(kind, "") in err and "Sanitizer" not in err


@pytest.mark.parametrize("kind", FLOODS)
def test_a_server_that_sends_without_end_does_not_keep_its_client(program, kind):
    with serving_badly(kind) as url:
        begun = time.monotonic()
        code, _, err = view(program, url, "a person", "--seconds", "1", "--timeout", "1", limit=MOST_BYTES)
    assert code == 0 and " frames in " in err and time.monotonic() - begun < 15


def test_a_frame_that_a_newer_caption_overtook_is_not_shown(program):
    with serving_badly("overtaken") as url:
        code, out, err = view(program, url, "--seconds", "1", "--raw")
    assert (code, out) == (0, b"") and "showing: newer" in err and "0 frames" in err


def test_what_was_never_started_or_stops_is_said(program):
    assert view(program, "ws://127.0.0.1:1/live")[0] == 1
    assert view(program, "ws://[::1]:1/live")[0] == 1
    for words in (
        (),
        ("http://x",),
        ("ws://x", "a", "b"),
        ("--seconds", "x", "ws://x"),
        ("ws://x", "--size", "9"),
        ("ws://x", "--what"),
        ("ws://x", "--fps"),
    ):
        code, _, err = view(program, *words)
        assert code == (1 if words == ("http://x",) else 2) and "t2v-view: " in err
    assert view(program, "--help")[1].startswith(b"usage")
    with InBackground(access=Access(token=TOKEN)) as server:
        assert "the token is missing or wrong; send the server's token" in view(program, server.url)[2]
    with ExitStack() as running:
        server = running.enter_context(InBackground())
        with Process(program, server.url, "a person") as client:
            assert "showing" in client.hear_error()
            running.close()
            code, _, err = client.end()
            assert code == 1 and "the server says goodbye: the server stops" in err
    with InBackground(limits=Limits(ping_s=0.2)) as server:
        code, _, err = view(program, server.url, "--seconds", "1.5")
        assert code == 0 and "0 frames" in err, "pings are answered where no frames come"


@pytest.mark.skipif(shutil.which("cmake") is None, reason="no CMake: apt install cmake")
def test_cmake_builds_it(tmp_path):
    build("cmake", "-S", CPP, "-B", tmp_path, "-DCMAKE_BUILD_TYPE=Release")
    build("cmake", "--build", tmp_path)
    assert view(tmp_path / "t2v-view", "--help")[0] == 0
