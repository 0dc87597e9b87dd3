"""The three.js example in headless Chromium: the panel shows the stream, upright, and the caption changes it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from t2v_edge.server.access import Access
from tests.examples.ar_vr import ROOT, Process
from tests.examples.browser import CHROMIUM, REMEDY, files, node_modules, playwright, why_no_browser
from tests.t2v_edge.live_samples import FakeStream, InBackground

RED, BLUE = (200, 30, 30), (30, 30, 220)


def why_not():
    if not (ROOT / "t2v_edge/web/t2v-edge.js").is_file():
        return "the JavaScript module is not in this checkout: t2v_edge/web/t2v-edge.js"
    if why_no_browser() is None and node_modules("three") is None:
        return f"three is not here: {REMEDY}"
    return why_no_browser()


pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


class Coloured(FakeStream):
    """The caption's colour, half as bright below the middle."""

    async def __aiter__(self):
        async for frame in super().__aiter__():
            frame.pixels[:] = RED if "running" in self.caption else BLUE
            frame.pixels[frame.pixels.shape[0] // 2 :] //= 2
            yield frame


def test_the_panel_shows_the_stream_upright_and_a_caption_changes_it():
    with files(ROOT) as origin, InBackground(make=Coloured, access=Access(origins=(origin,))) as server:
        url = f"{origin}/examples/ar_vr/threejs/index.html?server={server.url}"
        with Process("node", ROOT / "tests/examples/threejs.mjs", url, playwright(), CHROMIUM) as browser:
            for caption, colour in (("a person is running", RED), ("一个人 sits", BLUE), ("running on", RED)):
                browser.say(caption)
                seen = json.loads(browser.hear() or json.dumps({"nothing": str(browser.end())}))
                assert seen.get("wrong") == [], seen
                # Filter and colour space are worth a few levels.
                assert np.abs(np.subtract(seen["top"], colour)).max() < 16
                assert np.abs(np.subtract(seen["bottom"], np.floor_divide(colour, 2))).max() < 16
                assert max(seen["corner"]) < 60, "there is a room around it"
            code, _, err = browser.end()
            assert code == 0, err
