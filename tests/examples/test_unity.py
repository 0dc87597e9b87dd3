"""The Unity example: its protocol part runs here in Mono against a real server; its Unity part is compiled."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import ExitStack

import pytest

from t2v_edge.server.access import Access
from tests.examples.ar_vr import EXAMPLES, ROOT, Process, build
from tests.examples.hostile import BAD_FRAMES, serving_badly
from tests.t2v_edge.live_samples import InBackground
from tests.t2v_edge.server.test_refusals import TOKEN

REASONS = {
    "text": "no JSON",
    "deep": "no JSON",
    "half text": "no JSON",
    "long text": "too long",
    "endless text": "too long",
}
UNITY, HERE = EXAMPLES / "unity", ROOT / "tests/examples/csharp"
pytestmark = pytest.mark.skipif(
    shutil.which("mcs") is None or shutil.which("mono") is None,
    reason="no C# compiler: apt install mono-mcs mono-runtime",
)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("unity") / "drive.exe"
    build(
        "mcs",
        "-langversion:7",
        "-warnaserror",
        f"-out:{path}",
        "-r:System.dll",
        UNITY / "T2VClient.cs",
        UNITY / "T2VJson.cs",
        HERE / "Drive.cs",
    )
    return path


def start(program, url, *words):
    return Process("mono", program, url, *words)


def take(client, count):
    """Frames as (generation, sequence, size, format, bytes, first byte)."""
    client.say(f"take {count}")
    frames = []
    while (line := client.hear()).startswith("frame "):
        generation, sequence, size, *rest = line.split()[1:]
        frames.append((int(generation), int(sequence), size, *map(int, rest)))
    assert line == "taken" and len(frames) == count
    return frames


def wait_for(client, word):
    """The client's status once it has `word` in it."""
    for _ in range(600):
        client.say("status")
        if word in (status := client.hear()):
            return status
        time.sleep(0.05)
    raise AssertionError(status)


def test_the_unity_part_compiles(tmp_path):
    build(
        "mcs",
        "-langversion:7",
        "-warnaserror",
        "-target:library",
        f"-out:{tmp_path / 'x.dll'}",
        "-r:System.dll",
        *UNITY.glob("*.cs"),
        HERE / "Unity.cs",
    )


def test_captions_change_the_frames_and_none_of_an_old_one_is_given(program):
    with InBackground(access=Access(token=TOKEN)) as server, start(program, server.url, "raw", TOKEN) as client:
        client.say("caption a person")
        assert {frame[2:] for frame in take(client, 5)} == {("8x6", 0, 144, 0)}
        for turn in range(1, 6):
            client.say(f'caption 一个人 "{turn}" \\ é')
            wait_for(client, f'"{turn}"')  # it is shown
            frames = take(client, 3)
            assert {(frame[0], frame[5]) for frame in frames} == {(turn, turn)}
            assert [f[1] for f in frames] == sorted({f[1] for f in frames}), "each is given once"
        code, out, err = client.end()
        assert (code, out, err) == (0, b"ended\n", "")
    assert server.made[0].caption == '一个人 "5" \\ é'


def test_jpeg_arrives_whole(program):
    with InBackground() as server, start(program, server.url, "jpeg") as client:
        client.say("caption a person")
        for _, _, size, kind, _, first in take(client, 3):
            assert (size, kind, first) == ("8x6", 1, 0xFF)


def test_it_connects_again_and_says_its_caption_again(program):
    with ExitStack() as first:
        server = first.enter_context(InBackground())
        with start(program, server.url, "raw") as client:
            port = server.port
            client.say("caption a person")
            take(client, 2)
            first.close()
            wait_for(client, "no connection")
            with InBackground(port=port) as again:
                wait_for(client, "connected")
                take(client, 2)
                assert again.made[0].caption == "a person"


def test_a_wrong_token_is_said_and_not_tried_again(program):
    with InBackground(access=Access(token=TOKEN)) as server, start(program, server.url, "raw", "wrong") as client:
        assert "the token is missing or wrong; send the server's token in hello" in wait_for(client, "token")
        client.say("ended")
        assert client.hear() == "ended"


def test_a_frame_that_nobody_took_before_a_newer_caption_was_shown_is_not_given(program):
    with serving_badly("overtaken") as url, start(program, url, "raw") as client:
        wait_for(client, "newer|")
        client.say("peek")
        assert client.hear() == "none"


@pytest.mark.parametrize("kind", [*BAD_FRAMES, "masked", "endless text", "garbage", "wrong accept", "not found"])
def test_what_a_server_sends_that_is_no_frame_is_refused_and_another_connection_is_tried(program, kind):
    with serving_badly(kind) as url, start(program, url, "raw") as client:
        client.say("caption a person")
        status = wait_for(client, REASONS.get(kind, "a " if kind in BAD_FRAMES else "no connection"))
        assert "connected to" not in status
        code, out, err = client.end()
        assert (code, out.splitlines()[-1], err) == (0, b"ended", "")


@pytest.mark.parametrize(
    "text",
    [
        '{"a":"x\\u00e9\\n\\"","b":-1.5e3,"c":{"a":"no"},"d":[1,{"e":[]}],"f":true,"g":null, "h" : "" }',
        "{}",
        " { } ",
        '{"a":"\\ud83d\\ude00😀"}',
        '{"a":[],"b":{}}',
    ],
)
def test_json_is_read(program, text):
    values = {
        key: str(value).replace("True", "true")
        for key, value in json.loads(text).items()
        if value is not None and not isinstance(value, (list, dict))
    }
    with Process("mono", program, "json") as reader:
        reader.say(text)
        code, out, err = reader.end()
        found = dict(line.split("=", 1) for line in out.decode().splitlines())
        assert (code, err) == (0, "")
        if "b" in values:
            values["b"] = "-1.5e3"  # as it was written
        assert {key: json.loads(value) for key, value in found.items()} == values


@pytest.mark.parametrize(
    "text",
    [
        '{"a":1}x',
        "[]",
        '{"a":' * 9 + "1" + "}" * 9,
        '{"a"',
        '{"a":"\\x"}',
        "",
        '{"a":1,}',
        '{"a":"\t"}',
        '{"a":"\\u00g0"}',
        "{a:1}",
    ],
)
def test_what_is_no_json_object_is_refused(program, text):
    with Process("mono", program, "json") as reader:
        reader.say(text)
        assert reader.end() == (1, b"", "")
