"""The three.js example in headless Chromium: the panel shows the stream, upright, and the caption changes it."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from t2v_edge.server.access import Access
from tests.examples.ar_vr import EXAMPLES, ROOT, Process
from tests.t2v_edge.live_samples import FakeStream, InBackground

THREEJS = EXAMPLES / "threejs"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
RED, BLUE = (200, 30, 30), (30, 30, 220)


def modules():
    """The folder with playwright-core, and the one with three; None where it is not there."""
    places = [*filter(None, [os.environ.get("T2V_EDGE_NODE_MODULES")]), ROOT / "out/web/node_modules",
              THREEJS / "node_modules"]
    return [next((Path(place) for place in places if (Path(place) / name).is_dir()), None)
            for name in ("playwright-core", "three")]


def why_not():
    if shutil.which("node") is None or CHROMIUM is None:
        return "no Node.js or Chromium: apt install nodejs npm chromium"
    if not (ROOT / "t2v_edge/web/t2v-edge.js").is_file():
        return "the JavaScript module is not in this checkout: t2v_edge/web/t2v-edge.js"
    if None in modules():
        return "playwright-core or three is not here: npm install --prefix out/web playwright-core three@0.187.0"
    return None


pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


class Coloured(FakeStream):
    """The caption's colour, half as bright below the middle."""

    async def __aiter__(self):
        async for frame in super().__aiter__():
            frame.pixels[:] = RED if "running" in self.caption else BLUE
            frame.pixels[frame.pixels.shape[0] // 2:] //= 2
            yield frame


class Files(http.server.SimpleHTTPRequestHandler):
    """The checkout, with `three` from wherever it is."""

    def translate_path(self, path):
        _, here, inside = path.partition("/threejs/node_modules/three/")
        return str(modules()[1] / "three" / inside) if here else super().translate_path(path)

    def log_message(self, *words):
        pass


@contextmanager
def files():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=str(ROOT)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_the_panel_shows_the_stream_upright_and_a_caption_changes_it():
    with files() as origin, InBackground(make=Coloured, access=Access(origins=(origin,))) as server:
        url = f"{origin}/examples/ar_vr/threejs/index.html?server={server.url}"
        with Process("node", ROOT / "tests/examples/threejs.mjs", url, modules()[0], CHROMIUM) as browser:
            for caption, colour in (("a person is running", RED), ("一个人 sits", BLUE), ("running on", RED)):
                browser.say(caption)
                seen = json.loads(browser.hear() or json.dumps({"nothing": browser.end()}))
                assert seen.get("wrong") == [], seen
                # JPEG and the texture's filter are worth a few levels.
                assert np.abs(np.subtract(seen["top"], colour)).max() < 16
                assert np.abs(np.subtract(seen["bottom"], np.floor_divide(colour, 2))).max() < 16
                assert max(seen["corner"]) < 60, "there is a room around it"
            code, _, err = browser.end()
            assert code == 0, err
