"""Public name of `t2v_edge.remote.client`: clients of the live server (docs/protocol.md)."""

from __future__ import annotations

from t2v_edge.remote.async_client import AsyncClient, ClientOptions, LiveFrame
from t2v_edge.remote.client import Client

__all__ = ["AsyncClient", "Client", "ClientOptions", "LiveFrame"]
