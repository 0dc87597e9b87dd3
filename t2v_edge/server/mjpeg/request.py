"""A strict parser of plain HTTP requests, for the MJPEG port. No sockets here.

The library websockets can only answer with a whole body, so an endless answer needs this parser. It takes RFC 9112's
form and no older one, and one request a connection. Doubtful requests are refused, because two readings of one request
can smuggle another past a proxy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Optional
from urllib.parse import parse_qsl

from t2v_edge.errors import ProtocolError

MAX_HEAD_BYTES = 8192
_MAX_HEADERS = 64
_MAX_VALUES = 16
_LINE = re.compile(r"(GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH) (/[!-~]*) HTTP/1\.[01]")
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")
_SENT_ONCE = {"authorization", "content-length", "host", "origin", "sec-fetch-site", "transfer-encoding"}


@dataclass(frozen=True)
class HttpRequest:
    """A parsed request. path: without the query. headers: by name in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]

    @property
    def bearer(self) -> Optional[str]:
        """The token of ``Authorization: Bearer TOKEN``. "" for another scheme, None without the header."""
        value = self.headers.get("authorization")
        return None if value is None else value.partition("Bearer ")[2]

    def body_bytes(self, most: int) -> int:
        """The size of the body. Raises `ProtocolError` if it is not stated or more than `most`."""
        if "transfer-encoding" in self.headers:
            raise _bad("the body has a transfer encoding", "send Content-Length")
        length = self.headers.get("content-length", "")
        if re.fullmatch("[0-9]{1,9}", length) is None:
            raise _bad("the length of the body is not stated", "send Content-Length")
        if int(length) > most:
            raise ProtocolError("too_large", f"the body has {length} bytes", f"send at most {most}")
        return int(length)


def parse_head(data: bytes) -> HttpRequest:
    """Parse the head of a request, with its empty line at the end. Raises `ProtocolError`."""
    if len(data) > MAX_HEAD_BYTES:
        raise ProtocolError("too_large", f"the request's head has more than {MAX_HEAD_BYTES} bytes", "send less")
    lines = data.decode("latin-1").split("\r\n")
    match = _LINE.fullmatch(lines[0])
    if match is None or lines[-2:] != ["", ""]:
        raise _bad("this is not an HTTP/1.1 request", "send GET PATH HTTP/1.1")
    if len(lines) - 3 > _MAX_HEADERS:
        raise ProtocolError("too_large", f"the request has more than {_MAX_HEADERS} headers", "send less")
    headers: dict[str, str] = {}
    for line in lines[1:-2]:
        found = _HEADER.fullmatch(line)
        if found is None:
            raise _bad("a header of the request is malformed", "send NAME: VALUE, each on one line")
        name = found[1].lower()
        if name in headers and name in _SENT_ONCE:
            raise _bad(f"the request has {name} twice", "send it once")
        headers[name] = found[2]
    path, _, query = match[2].partition("?")
    return HttpRequest(match[1], path, _parse_query(query), headers)


def _parse_query(query: str) -> dict[str, str]:
    """The values of a query, UTF-8 in percent escapes. A repeated name is refused."""
    try:
        pairs = parse_qsl(
            query, keep_blank_values=True, strict_parsing=bool(query), errors="strict", max_num_fields=_MAX_VALUES
        )
    except ValueError as error:
        raise _bad("the query of the address is malformed", "write NAME=VALUE&NAME=VALUE, escaped") from error
    values = dict(pairs)
    if len(values) < len(pairs):
        raise _bad("the query of the address has a name twice", "write each once")
    return values


def _bad(problem: str, remedy: str) -> ProtocolError:
    return ProtocolError("bad_message", problem, remedy)
