"""The web page of the live server, and its answers to plain HTTP requests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from importlib.resources import files
from typing import Any, Callable

from t2v_edge.errors import ServerError

FILES: Mapping[str, tuple[str, str]] = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/view.js": ("view.js", "text/javascript; charset=utf-8"),
    "/speech.js": ("speech.js", "text/javascript; charset=utf-8"),
    "/t2v-edge.js": ("t2v-edge.js", "text/javascript; charset=utf-8"),
    "/statistics.js": ("statistics.js", "text/javascript; charset=utf-8"),
    "/wire.js": ("wire.js", "text/javascript; charset=utf-8"),
    "/xr.js": ("xr.js", "text/javascript; charset=utf-8"),
    "/xr-scene.js": ("xr-scene.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
"""Path -> file of ``t2v_edge/web`` and its type. No other file is ever read."""

HEADERS: Mapping[str, str] = {
    # Scripts, styles and connections of this server only, nothing inline, and no page may frame this one.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(self), xr-spatial-tracking=(self)",
    # Browsers ask again each time, so that no old script meets a new page after an upgrade.
    "Cache-Control": "no-cache",
}
_METHODS = ("GET", "HEAD")


@dataclass(frozen=True)
class _Page:
    body: bytes
    kind: str
    tag: str


class Pages:
    """The page and its files. They are read once, so all are of one version. Raises `ServerError` if one is missing."""

    def __init__(self) -> None:
        try:
            self._pages = {path: _read(name, kind) for path, (name, kind) in FILES.items()}
        except OSError as error:
            raise ServerError(f"the server's page is not whole ({error}); install t2v-edge again") from error

    def answer(self, connection: Any, request: Any) -> Any:
        """The response to a request for one of the files. None for any other path."""
        page = self._pages.get(request.path.partition("?")[0])
        if page is None:
            return None
        known = {
            tag.strip().removeprefix("W/")
            for value in request.headers.get_all("If-None-Match")
            for tag in value.split(",")
        }
        fresh = page.tag in known
        response = connection.respond(HTTPStatus.NOT_MODIFIED if fresh else HTTPStatus.OK, "")
        for name in ("Content-Type", "Content-Length"):
            del response.headers[name]
        for name, value in {**HEADERS, "ETag": page.tag}.items():
            response.headers[name] = value
        if not fresh:
            response.headers["Content-Type"] = page.kind
            response.headers["Content-Length"] = str(len(page.body))
            response.body = page.body
        return response


def only_reading(answer: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Wrap `answer`: it serves GET and HEAD, without a body for HEAD. Any other method gets a 405.

    Versions of websockets that know only GET close other connections themselves.
    """

    def handle(connection: Any, request: Any) -> Any:
        method = getattr(request, "method", "GET")
        if method not in _METHODS:
            response = connection.respond(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are answered here\n")
            response.headers["Allow"] = ", ".join(_METHODS)
            return response
        response = answer(connection, request)
        if response is not None and method == "HEAD":
            response.body = b""  # Content-Length stays
        return response

    return handle


def _read(name: str, kind: str) -> _Page:
    body = files("t2v_edge").joinpath("web").joinpath(name).read_bytes()
    return _Page(body, kind, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
