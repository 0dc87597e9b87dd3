"""Rules of who may connect: loopback addresses, tokens, and the origins of web pages."""

from __future__ import annotations

import hmac
import ipaddress
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union
from urllib.parse import urlsplit

from t2v_edge.errors import ServerError, UsageError

MIN_TOKEN = 16
MAX_TOKEN = 512
TOKEN_VARIABLE = "T2V_EDGE_TOKEN"
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Access:
    """The rules of one server. Raises `UsageError`.

    host: the address to bind. Without a token it must be a loopback address.
    token: the clients' secret, 16 to 512 printable ASCII characters. None admits this machine only.
    origins: pages allowed besides the server's own, as "https://host:port".
    """

    host: str = "127.0.0.1"
    token: Optional[str] = None
    origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.token is None:
            if not is_loopback(self.host):
                raise UsageError(
                    f"{self.host} can be reached from other machines, and there is no token; put one of {MIN_TOKEN} "
                    f"characters or more into {TOKEN_VARIABLE} or --token-file, or bind 127.0.0.1"
                )
        elif not MIN_TOKEN <= len(self.token) <= MAX_TOKEN or not all("!" <= c <= "~" for c in self.token):
            raise UsageError(
                f"the token has {len(self.token)} characters, expected {MIN_TOKEN} to {MAX_TOKEN} of "
                "ASCII without spaces; openssl rand -hex 24 makes a good one"
            )
        for origin in self.origins:
            if _split(origin) is None:
                raise UsageError(f"{origin!r} is no origin; write https://HOST or http://HOST:PORT, without a path")

    def knows(self, token: Optional[str]) -> bool:
        """Whether `token` is the server's. A wrong one takes as long as the right one."""
        if self.token is None:
            return True
        return token is not None and hmac.compare_digest(token.encode("utf-8"), self.token.encode("utf-8"))

    def allows_origin(self, origin: Optional[str], host: Optional[str]) -> bool:
        """Whether a page of `origin` may connect with a request to `host` (the Host header).

        Programs send no origin and may connect. Browsers send one. The server's own pages may connect if their host is
        an address or localhost. A host name must be listed, because a stranger's may point here (DNS rebinding).
        """
        if origin is None:
            return True
        page = _split(origin)
        if page is None:
            return False
        if page in {_split(allowed) for allowed in self.origins}:
            return True
        here = _split(f"{page[0]}://{host}")
        return page == here and _is_address(page[1])

    def allows_host(self, host: str) -> bool:
        """Whether `host` (the Host header) is an address, localhost, or the host of a listed origin."""
        here = _split(f"http://{host}")
        if here is None:
            return False
        listed = {_split(allowed) for allowed in self.origins}
        return _is_address(here[1]) or here[1] in {page[1] for page in listed if page is not None}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def read_token(path: Optional[Path]) -> Optional[str]:
    """The token in a file, else in the environment, else None. Raises `ServerError`.

    It is not an argument of the command line, because other users can see those.
    """
    if path is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        if path.stat().st_size > 2 * MAX_TOKEN:
            raise ServerError(f"{path} is too long for a token; put nothing but the token into it")
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError) as error:
        raise ServerError(f"the token file {path} cannot be read ({error}); write the token into it") from error


def open_tls(certificate: Optional[Path], key: Optional[Path]) -> Optional[ssl.SSLContext]:
    """TLS with these PEM files, None without a certificate. Raises `UsageError` or `ServerError`."""
    if certificate is None:
        if key is not None:
            raise UsageError("--tls-key without --tls-cert; give both")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # An empty password, because a question on the terminal may have nobody to answer it.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:
        raise ServerError(
            f"{certificate} cannot be used for TLS ({error}); give a PEM certificate with --tls-cert and "
            "its unencrypted key with --tls-key"
        ) from error
    return context


def _split(origin: str) -> Optional[tuple[str, str, int]]:
    """(scheme, host, port) of an origin. None for any other text, such as "null"."""
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        return None
    more = parts.path or parts.query or parts.fragment or "@" in parts.netloc
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or more:
        return None
    return parts.scheme, parts.hostname, _DEFAULT_PORTS[parts.scheme] if port is None else port


def _is_address(host: str) -> bool:
    return host == "localhost" or _address(host) is not None


def _address(host: str) -> Union[ipaddress.IPv4Address, ipaddress.IPv6Address, None]:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
