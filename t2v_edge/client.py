"""Public name of `t2v_edge.remote.client`: clients of the live server (docs/protocol.md)."""

from __future__ import annotations

from t2v_edge.remote.async_client import AsyncClient
from t2v_edge.remote.client import Client
from t2v_edge.remote.frame import LiveFrame
from t2v_edge.remote.options import ClientOptions

__all__ = ["AsyncClient", "Client", "ClientOptions", "LiveFrame"]
