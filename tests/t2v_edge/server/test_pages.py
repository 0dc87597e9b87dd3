"""The page that the live server shows: which files, with which headers, to whom. Over real sockets."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
import websockets.exceptions

import t2v_edge
from t2v_edge.errors import ServerError
from t2v_edge.server import pages
from t2v_edge.server.access import Access
from t2v_edge.server.pages import FILES, Pages
from tests.t2v_edge.live_samples import TIMEOUT_S, a_neighbour, fetch, serving

WEB = Path(t2v_edge.__file__).parent / "web"
TOKEN = "correct-horse-battery"
SEES_METHODS = hasattr(websockets.exceptions, "InvalidMethod")
methods = pytest.mark.skipif(not SEES_METHODS, reason="this version of websockets knows no method but GET")


async def ask(server, method, path):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
    answer = (await asyncio.wait_for(reader.read(), TIMEOUT_S)).decode()
    writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    return int(head.split()[1]), head, body


def headers_of(head):
    return {name.lower(): value for name, value in (line.split(": ", 1) for line in head.split("\r\n")[1:])}


def test_every_file_of_the_page_is_served_as_what_it_is_and_no_other_file_exists():
    assert {name for name, _ in FILES.values()} == {path.name for path in WEB.iterdir()}

    async def scenario():
        async with serving() as server, a_neighbour(server):
            for path, (name, kind) in FILES.items():
                status, head, body = await fetch(server, path)
                headers = headers_of(head)
                assert (status, body) == (200, (WEB / name).read_text(encoding="utf-8")), path
                assert headers["content-type"] == kind and int(headers["content-length"]) == len(body.encode())
                assert head.lower().count("\r\ncontent-type:") == head.lower().count("\r\ncontent-length:") == 1
                assert headers["x-content-type-options"] == "nosniff"
            assert (await fetch(server, "/?from=a-link"))[0] == 200

    asyncio.run(scenario())


def test_the_policy_lets_nothing_run_that_is_inline_or_from_elsewhere():
    policy = dict(rule.split(" ", 1) for rule in pages.HEADERS["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    page = (WEB / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]* src=)|<style|\son[a-z]+=|\sstyle=|javascript:", page)
    for path in WEB.iterdir():
        text = path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://(?!127\.0\.0\.1)", text), f"{path.name} names another server"


@pytest.mark.parametrize(
    "path",
    [
        "/index.html",
        "/../errors.py",
        "/%2e%2e/errors.py",
        "/web/page.js",
        "/page.js/",
        "//",
        "/page.js%00",
        "/py.typed",
    ],
)
def test_no_other_path_is_answered(path):
    async def scenario():
        async with serving() as server:
            assert (await fetch(server, path))[0] == 404

    asyncio.run(scenario())


def test_a_browser_asks_again_each_time_and_gets_only_what_changed():
    async def scenario():
        async with serving() as server:
            _, head, _ = await fetch(server, "/page.js")
            headers = headers_of(head)
            assert headers["cache-control"] == "no-cache"
            status, head, body = await fetch(server, "/page.js", [f'If-None-Match: W/"x", {headers["etag"]}'])
            assert (status, body, headers_of(head)["etag"]) == (304, "", headers["etag"])
            assert "content-length" not in headers_of(head)
            assert (await fetch(server, "/page.js", ['If-None-Match: "an-older-one"']))[0] == 200

    asyncio.run(scenario())


@methods
@pytest.mark.parametrize("path", ["/", "/page.js", "/healthz", "/metrics", "/elsewhere"])
def test_head_says_what_get_would_without_a_body(path):
    async def scenario():
        async with serving() as server:
            got, asked = await ask(server, "GET", path), await ask(server, "HEAD", path)
            assert asked[0] == got[0] and asked[2] == ""
            wanted, headers = headers_of(got[1]), headers_of(asked[1])
            if path != "/metrics":
                assert {k: v for k, v in headers.items() if k != "date"} == {
                    k: v for k, v in wanted.items() if k != "date"
                }
            assert int(headers["content-length"]) > 0

    asyncio.run(scenario())


@methods
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_written(method):
    async def scenario():
        async with serving() as server, a_neighbour(server):
            for path in ("/", "/live", "/healthz", "/elsewhere"):
                status, head, _ = await ask(server, method, path)
                assert status == 405 and headers_of(head)["allow"] == "GET, HEAD"

    asyncio.run(scenario())


def test_the_page_is_shown_without_the_token_that_the_stream_needs():
    async def scenario():
        async with serving(access=Access(token=TOKEN)) as server:
            assert (await fetch(server, "/"))[0] == (await fetch(server, "/page.js"))[0] == 200
            assert (await fetch(server, "/metrics"))[0] == 401

    asyncio.run(scenario())


def test_an_installation_without_the_page_is_named(monkeypatch):
    monkeypatch.setattr(pages, "FILES", {"/": ("absent.html", "text/html")})
    with pytest.raises(ServerError, match="absent.html.*install t2v-edge again"):
        Pages()


@pytest.mark.parametrize(
    "host, shown",
    [("127.0.0.1", "http://127.0.0.1:{}/"), ("localhost", "http://localhost:{}/"), ("0.0.0.0", "http://127.0.0.1:{}/")],
)
def test_the_server_says_where_its_page_is(host, shown):
    async def scenario():
        async with serving(access=Access(host, TOKEN)) as server:
            assert server.page_url == shown.format(server.port)

    asyncio.run(scenario())
