"""A live server for browsers, whose streams show a known picture: the colour of the caption and a bar that moves."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import threading
from fractions import Fraction
from pathlib import Path

import numpy as np

from t2v_edge.frame import Frame
from t2v_edge.remote.protocol import JPEG, Settings
from t2v_edge.server.server import LiveServer, ServerOptions
from tests.t2v_edge.live_samples import TIMEOUT_S, FakeStream

HERE = Path(__file__).parent
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
SIDE = 64
DEFAULTS = Settings(Fraction(30), (SIDE, SIDE), 0, JPEG, 85)
COLOURS = {
    "a person is running": (200, 30, 30),
    "a person is playing basketball": (30, 30, 220),
    "一个人正在打篮球": (20, 170, 60),
}
SCENARIO_S = 120


def why_no_browser():
    """What is missing for a browser test and what to do, or None."""
    if not shutil.which("node"):
        return "node is not here: install Node.js 20 or later (on Debian: apt install nodejs npm)"
    if not Path(CHROMIUM).exists():
        return f"{CHROMIUM} is not here: apt install chromium, or name another with CHROMIUM"
    if modules() is None:
        return "playwright-core, iwer or typescript are not here: make test-web installs them into out/web"
    return None


def modules():
    """The folder of the npm packages, or None."""
    given = os.environ.get("T2V_EDGE_NODE_MODULES")
    folder = Path(given) if given else HERE.parents[1] / "out/web/node_modules"
    return folder if all((folder / name).is_dir() for name in ("playwright-core", "iwer", "typescript")) else None


class MovingStream(FakeStream):
    """Frames in the colour of their caption (grey for others), and a white bar that goes from left to right."""

    async def __aiter__(self):
        width, height = self.settings.size
        index = 0
        while not self.closed:
            if self.generation >= 0 and not self.paused:
                pixels = np.full((height, width, 3), COLOURS.get(self.caption, (90, 90, 90)), np.uint8)
                left = 4 * index % width
                pixels[height // 4 : 3 * height // 4, left : left + width // 8] = 255
                yield Frame(pixels, index, index, 1 / self.settings.fps, self.generation, self.caption)
                index += 1
            await asyncio.sleep(float(1 / self.settings.fps))


class Server:
    """A live server on a loop and thread of its own, which can be stopped and started again on the same port."""

    def __init__(self, make=MovingStream, **options) -> None:
        self._make = make
        self._options = {"port": 0, **options}
        self.server = None

    def start(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        server = LiveServer(self._make, "tiny", Fraction(16), ServerOptions(DEFAULTS, **self._options))
        self.server = self._do(server.__aenter__())
        self._options["port"] = server.port
        return self

    def stop(self):
        if self.server is not None:
            self._do(self.server.__aexit__(None, None, None))
            self.server = None
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(TIMEOUT_S)
            self._loop.close()

    def _do(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(TIMEOUT_S)

    def __enter__(self):
        return self.start()

    def __exit__(self, *error):
        self.stop()


def run_scenario(name, server, tmp_path, **answers):
    """Run ``browser/<name>.mjs`` with the server's page; what it asks for is done by `answers`. Gives what it says."""
    command = ["node", str(HERE / "browser" / f"{name}.mjs"), server.server.page_url, str(tmp_path)]
    environment = {**os.environ, "CHROMIUM": CHROMIUM, "T2V_EDGE_NODE_MODULES": str(modules())}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        guard = threading.Timer(SCENARIO_S, process.kill)
        guard.start()
        said = {}
        try:
            for line in process.stdout:
                message = json.loads(line)
                if "ask" in message:
                    answers[message["ask"]]()
                    process.stdin.write("\n")
                    process.stdin.flush()
                else:
                    said = message["done"]
            errors = process.stderr.read()
            assert process.wait() == 0, errors
        finally:
            guard.cancel()
            process.kill()
    return said
