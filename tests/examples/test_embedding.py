"""MJPEG in pages of a real browser: shown where it is typed in or the page is listed, refused to all others."""

from __future__ import annotations

import json

import pytest

from t2v_edge.server.access import Access
from tests.examples.ar_vr import ROOT, Process
from tests.examples.browser import CHROMIUM, files, playwright, why_no_browser
from tests.t2v_edge.live_samples import InBackground

pytestmark = pytest.mark.skipif(why_no_browser() is not None, reason=str(why_no_browser()))


def test_only_listed_pages_that_ask_may_embed_the_stream():
    with files(ROOT / "docs/images") as listed, files(ROOT / "docs/images") as unlisted:
        stranger = unlisted.replace("127.0.0.1", "localhost")
        with InBackground(mjpeg_port=0, access=Access(origins=(listed,))) as server:
            url = f"{server.mjpeg.url}?caption=a+person&size=64x48"
            program = ROOT / "tests/examples/embedding.mjs"
            with Process("node", program, playwright(), CHROMIUM, url, listed, unlisted, stranger) as browser:
                code, out, err = browser.end()
    assert code == 0, err
    assert json.loads(out) == {
        f"{listed} anonymous": 64,
        f"{listed} null": "refused",
        "typed": 64,
        f"{unlisted} anonymous": "refused",
        f"{unlisted} null": "refused",
        f"{stranger} anonymous": "refused",
        f"{stranger} null": "refused",
    }
