"""A live stream as an OpenGL texture, on a panel that hangs in a room. Captions come from standard input, line by line.

    pip install 't2v-edge[cpu,serve]' moderngl glfw

    python opengl_texture.py --server ws://127.0.0.1:8765/live "a person is waving"    # from t2v-edge serve
    python opengl_texture.py --live small.bundle "a person is waving"                  # made in this process
    python opengl_texture.py --live small.bundle "a person is waving" --shot shot.png  # without a window

The parts to copy into an app of your own are `Newest` and `Screen`. `Newest` keeps the newest frame, while the app
draws at its own rate. `Screen` has a texture that takes frames without waiting for them.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import moderngl
import numpy as np

import t2v_edge
from t2v_edge.errors import T2VError

VERTICES = """
#version 330
uniform mat4 camera;
in vec2 corner;
out vec2 place;
void main() {
    place = vec2(corner.x, 1.0 - corner.y);  // a frame's rows come from the top
    gl_Position = camera * vec4(2.0 * corner - 1.0, 0.0, 1.0);
}
"""
PIXELS = """
#version 330
uniform sampler2D frame;
in vec2 place;
out vec4 colour;
void main() { colour = vec4(texture(frame, place).rgb, 1.0); }
"""


class Newest:
    """Runs an iterator of frames in a thread and keeps the newest; `take` gives it once and never waits."""

    def __init__(self, frames: Iterator) -> None:
        self.error: BaseException | None = None
        self.ended = False
        self._frame = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, args=(frames,), daemon=True)
        self._thread.start()

    def take(self):
        with self._lock:
            frame, self._frame = self._frame, None
            return frame

    def _run(self, frames: Iterator) -> None:
        try:
            for frame in frames:
                with self._lock:
                    self._frame = frame
        except BaseException as error:  # noqa: BLE001 - the thread that draws raises it
            self.error = error
        self.ended = True


class Screen:
    """A rectangle with the frame on it, of an OpenGL 3.3 context."""

    def __init__(self, gl: moderngl.Context) -> None:
        self._gl = gl
        self._program = gl.program(vertex_shader=VERTICES, fragment_shader=PIXELS)
        corners = gl.buffer(np.array([0, 0, 1, 0, 0, 1, 1, 1], np.float32).tobytes())
        self._panel = gl.vertex_array(self._program, [(corners, "2f", "corner")])
        self._texture: moderngl.Texture | None = None
        self._buffers: list[moderngl.Buffer] = []

    def upload(self, pixels: np.ndarray) -> None:
        """Take a frame: uint8 (H, W, 3) RGB.

        It goes through one of two pixel buffers. The driver copies it into the texture whenever it likes. Meanwhile the
        next frame is written into the other buffer. Writing to the texture directly makes the caller wait until earlier
        drawing with it is done.
        """
        height, width, _ = pixels.shape
        if self._texture is None or self._texture.size != (width, height):
            self._release()
            self._texture = self._gl.texture((width, height), 3, alignment=1)
            self._texture.repeat_x = self._texture.repeat_y = False
            self._buffers = [self._gl.buffer(reserve=pixels.nbytes, dynamic=True) for _ in range(2)]
        buffer = self._buffers[0]
        self._buffers.reverse()
        buffer.orphan()
        buffer.write(np.ascontiguousarray(pixels))
        self._texture.write(buffer, alignment=1)

    def draw(self, camera: np.ndarray) -> None:
        """Draw the newest frame, where there is one. camera: float32 (4, 4), from the panel's space to clip space."""
        if self._texture is not None:
            self._texture.use(0)
            self._program["camera"].write(np.ascontiguousarray(camera.T, np.float32))
            self._panel.render(moderngl.TRIANGLE_STRIP)

    def _release(self) -> None:
        for thing in (self._texture, *self._buffers):
            if thing is not None:
                thing.release()


def look(seconds: float, aspect: float) -> np.ndarray:
    """A camera before the panel that sways a little, so that one sees that it is in a room."""
    turn = 0.35 * np.sin(0.8 * seconds)
    near, far, scale = 0.1, 10.0, 1.0 / np.tan(np.radians(25))
    project = np.array(
        [
            [scale / aspect, 0, 0, 0],
            [0, scale, 0, 0],
            [0, 0, (far + near) / (near - far), 2 * far * near / (near - far)],
            [0, 0, -1, 0],
        ]
    )
    place = np.array(
        [[np.cos(turn), 0, np.sin(turn), 0], [0, 1, 0, 0], [-np.sin(turn), 0, np.cos(turn), -3.2], [0, 0, 0, 1]]
    )
    return (project @ place).astype(np.float32)


class Player:
    """Draws a stream into a framebuffer, and counts."""

    def __init__(self, gl: moderngl.Context, frames: Iterator) -> None:
        self._gl = gl
        self._newest = Newest(frames)
        self._screen = Screen(gl)
        self.shown = 0
        self.ended = False

    def draw(self, target: moderngl.Framebuffer, seconds: float) -> None:
        self.ended = self._newest.ended  # looked at first: what came before the end is drawn
        if self._newest.error is not None:
            raise self._newest.error
        frame = self._newest.take()
        if frame is not None:
            self._screen.upload(frame.pixels)
            self.shown += 1
        target.use()
        target.clear(0.05, 0.06, 0.08)
        self._screen.draw(look(seconds, target.width / target.height))


def open_window(title: str):
    """(GL context, function that shows what was drawn and says whether to go on)."""
    import glfw

    if not glfw.init():
        raise SystemExit("no window can be opened here; try --shot FILE.png")
    glfw.window_hint(glfw.CONTEXT_VERSION_MAJOR, 3)
    glfw.window_hint(glfw.CONTEXT_VERSION_MINOR, 3)
    glfw.window_hint(glfw.OPENGL_PROFILE, glfw.OPENGL_CORE_PROFILE)
    window = glfw.create_window(960, 720, title, None, None)
    if not window:
        raise SystemExit("no window with OpenGL 3.3 can be opened here; try --shot FILE.png")
    glfw.make_context_current(window)
    glfw.swap_interval(1)

    def show() -> bool:
        glfw.swap_buffers(window)
        glfw.poll_events()
        return not glfw.window_should_close(window) and glfw.get_key(window, glfw.KEY_ESCAPE) != glfw.PRESS

    return moderngl.create_context(require=330), show


def read_captions(say: Callable[[str], object]) -> None:
    """Say each line of standard input, from a thread of its own."""

    def run() -> None:
        for line in sys.stdin:
            if line.strip():
                try:
                    say(line.strip())
                except T2VError as error:
                    print(error, file=sys.stderr)

    threading.Thread(target=run, daemon=True).start()


def play(player: Player, target: moderngl.Framebuffer, show: Callable[[], bool], seconds: float | None) -> None:
    begun = time.monotonic()
    while not player.ended and (seconds is None or time.monotonic() - begun < seconds):
        player.draw(target, time.monotonic() - begun)
        if not show():
            break
    print(f"{player.shown} frames shown in {time.monotonic() - begun:.1f} s", file=sys.stderr)


def save(target: moderngl.Framebuffer, path: Path) -> None:
    import cv2

    picture = np.frombuffer(target.read(components=3, alignment=1), np.uint8).reshape(target.height, target.width, 3)
    if not cv2.imwrite(str(path), picture[::-1, :, ::-1]):  # OpenGL's rows come from the bottom, OpenCV's pixels as BGR
        raise SystemExit(f"{path} cannot be written; give a name that ends with .png")


def open_stream(args: argparse.Namespace, stack: ExitStack):
    """(frames, function that says a caption)."""
    if args.live is not None:
        pipeline = stack.enter_context(t2v_edge.Pipeline.open(args.live))
        live = stack.enter_context(pipeline.live(args.caption, fps=args.fps))
        return live, live.set_caption
    from t2v_edge.client import Client

    client = stack.enter_context(
        Client.connect(args.server, token=os.environ.get("T2V_EDGE_TOKEN"), fps=args.fps, format="raw", retry_s=30)
    )
    client.caption(args.caption)
    return client.frames(), client.caption


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--live", type=Path, metavar="BUNDLE", help="make the frames here")
    where.add_argument("--server", metavar="URL", help="take them from t2v-edge serve; T2V_EDGE_TOKEN has its token")
    parser.add_argument("caption", help="what should be seen first")
    parser.add_argument("--fps", type=float, default=30, help="frames a second (default: 30)")
    parser.add_argument("--seconds", type=float, help="how long (default: until the window is closed; 2 with --shot)")
    parser.add_argument("--shot", type=Path, metavar="PNG", help="draw without a window, and keep the last picture")
    args = parser.parse_args(arguments)
    try:
        with ExitStack() as stack:
            frames, say = open_stream(args, stack)
            read_captions(say)
            if args.shot is None:
                gl, show = open_window("t2v-edge")
                play(Player(gl, frames), gl.screen, show, args.seconds)
                return 0
            gl = stack.enter_context(moderngl.create_standalone_context(require=330, backend="egl"))
            target = gl.simple_framebuffer((640, 480))
            play(Player(gl, frames), target, lambda: not time.sleep(1 / 60), args.seconds or 2)
            save(target, args.shot)
    except T2VError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
