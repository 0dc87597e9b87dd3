"""Where Chromium, playwright-core and npm packages are, and a server of files for pages."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import threading
from contextlib import contextmanager
from pathlib import Path

from tests.examples.ar_vr import EXAMPLES, ROOT

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
REMEDY = "make test-web installs it into out/web"


def node_modules(package):
    """The folder that has this npm package; None where none has."""
    given = os.environ.get("T2V_EDGE_NODE_MODULES")
    places = [*([given] if given else []), ROOT / "out/web/node_modules", EXAMPLES / "threejs/node_modules"]
    return next((Path(place) for place in places if (Path(place) / package).is_dir()), None)


def playwright():
    return node_modules("playwright-core")


def why_no_browser():
    """What is missing and what to do, or None."""
    if shutil.which("node") is None or CHROMIUM is None:
        return "no Node.js or Chromium: apt install nodejs npm chromium"
    if playwright() is None:
        return f"playwright-core is not here: {REMEDY}"
    return None


class _Files(http.server.SimpleHTTPRequestHandler):
    """The files of a folder, and `three` from wherever it is."""

    def translate_path(self, path):
        _, here, inside = path.partition("/threejs/node_modules/three/")
        return str(node_modules("three") / "three" / inside) if here else super().translate_path(path)

    def log_message(self, *words):
        pass


@contextmanager
def files(folder):
    """The address of a server of this folder, on loopback."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Files, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
