"""Options of the live server's clients."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Optional

from t2v_edge.remote.protocol import Settings


@dataclass(frozen=True)
class ClientOptions:
    """The server's address, the settings to ask for, and the times to wait.

    url: ``ws://host:port/live``, or ``wss://``.
    token: the server's token, if it has one.
    tls: certificates to trust for wss. None trusts what the system trusts.
    timeout_s: seconds to wait for a connection, and for each answer.
    retry_s: seconds to go on trying after a connection is lost, with pauses of 0.25 to 8 seconds. 0 never retries.
    """

    url: str
    token: Optional[str] = None
    settings: Settings = Settings()
    tls: Optional[ssl.SSLContext] = None
    timeout_s: float = 10.0
    retry_s: float = 0.0
