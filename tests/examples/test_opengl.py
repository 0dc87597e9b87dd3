"""The OpenGL example, drawn without a window: what is on the panel is what was in the frame."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from t2v_edge.errors import EngineError
from t2v_edge.pipeline import Pipeline
from tests.examples.ar_vr import EXAMPLES, ROOT
from tests.t2v_edge.live_samples import TIMEOUT_S, InBackground

moderngl = pytest.importorskip("moderngl", reason="no moderngl: pip install moderngl")
PATH = EXAMPLES / "python/opengl_texture.py"


def load():
    spec = importlib.util.spec_from_file_location("opengl_texture", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gl():
    try:
        with moderngl.create_standalone_context(require=330, backend="egl") as context:
            yield context
    except Exception as error:  # noqa: BLE001 - whatever the driver says
        pytest.skip(f"no OpenGL without a window ({error}): apt install libegl1 libgl1-mesa-dri")


FLAT = np.eye(4, dtype=np.float32)  # the panel fills the view


def draw(gl, screen, size, camera=FLAT):
    """What a framebuffer of (width, height) shows, from the top."""
    target = gl.simple_framebuffer(size)
    target.use()
    target.clear(0, 0, 0)
    screen.draw(camera)
    return np.frombuffer(target.read(components=3, alignment=1), np.uint8).reshape(size[1], size[0], 3)[::-1]


@pytest.mark.parametrize("width, height", [(16, 12), (7, 5), (1, 1)])
def test_the_panel_shows_each_pixel_in_its_place(gl, width, height):
    screen = load().Screen(gl)
    random = np.random.default_rng(0)
    for _ in range(5):
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        screen.upload(pixels)
        assert (draw(gl, screen, (width, height)) == pixels).all()


def test_frames_may_change_their_size_and_nothing_is_drawn_before_the_first(gl):
    screen = load().Screen(gl)
    assert not draw(gl, screen, (4, 4)).any()
    for side in (4, 6, 4):
        screen.upload(np.full((side, side, 3), side, np.uint8)[:, ::-1])
        assert (draw(gl, screen, (side, side)) == side).all()


def test_the_panel_is_seen_in_perspective_and_upright(gl):
    module = load()
    screen = module.Screen(gl)
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = (255, 0, 0)
    pixels[4:] = (0, 0, 255)
    screen.upload(pixels)
    seen = draw(gl, screen, (120, 90), module.look(0.5, 120 / 90))
    assert tuple(seen[35, 60]) == (255, 0, 0) and tuple(seen[55, 60]) == (0, 0, 255) and not seen[2].any()
    left, right = (seen[:, side].any(axis=1).sum() for side in (45, 75))
    assert left != right, "the side that is nearer looks taller"


def test_newest_keeps_one_frame_and_passes_errors_on():
    module = load()

    def frames():
        yield from range(100)
        raise EngineError("the engine burns")

    newest = module.Newest(frames())
    for _ in range(1000):
        if newest.ended:
            break
        time.sleep(0.01)
    assert newest.take() == 99 and newest.take() is None and isinstance(newest.error, EngineError)


def run(*words, stdin="", **environment):
    done = subprocess.run(
        [sys.executable, str(PATH), *map(str, words)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            **environment,
        },
    )
    return done.returncode, done.stderr


def centre(path):
    picture = cv2.imread(str(path))
    assert picture.shape == (480, 640, 3)
    return picture[200:280, 280:360, ::-1].reshape(-1, 3)


def test_frames_of_a_server_are_drawn_and_a_line_changes_them(gl, tmp_path):
    with InBackground() as server:
        code, err = run(
            "--server",
            server.url,
            "a person",
            "--shot",
            tmp_path / "a.png",
            "--seconds",
            "1.5",
            stdin="一个人\nunreadable\n" + "".join(f"a person {n}\n" for n in range(20)),
        )
        assert code == 0 and int(err.split()[0]) > 10, err
        generation = server.made[0].generation
        assert generation >= 1 and server.made[0].caption == "a person 19"
    assert (centre(tmp_path / "a.png") == generation).all()
    code, err = run("--server", "ws://127.0.0.1:1/live", "a person", "--shot", tmp_path / "b.png")
    assert code == 1 and "127.0.0.1:1" in err and not (tmp_path / "b.png").exists()


def test_frames_made_in_the_process_are_drawn(gl, bundle_path, tmp_path):
    code, err = run("--live", bundle_path, "a person is walking", "--shot", tmp_path / "a.png", "--seconds", "1")
    assert code == 0 and int(err.split()[0]) > 5, err
    with Pipeline.open(bundle_path) as pipeline:
        frame = next(iter(pipeline.stream("a person is walking", seconds=1)))
    seen = centre(tmp_path / "a.png")
    assert len(np.unique(seen, axis=0)) > 10 and abs(seen.mean() - frame.pixels.mean()) < 60, "the panel has a picture"
