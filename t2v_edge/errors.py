"""Errors of the package. Each message says what is wrong and names the remedy."""

from __future__ import annotations


class T2VError(Exception):
    """The base of all errors raised on purpose. The command line prints them without a traceback.

    exit_code: the command line's exit code. 1: the work failed. 2: wrong use.
    """

    exit_code = 1


class UsageError(T2VError):
    """A flag, option or argument that cannot be honoured."""

    exit_code = 2


class SpecError(T2VError):
    """A stage breaks its contract: a name, shape, dtype or state pair is wrong."""


class CheckpointError(T2VError):
    """A checkpoint cannot be read, or holds something that must not be exported."""


class BundleError(T2VError):
    """A bundle is damaged, incomplete, too large, or not what its manifest says."""


class EngineError(T2VError):
    """An inference engine is absent or failed to load or run a graph."""


class DeviceError(T2VError):
    """A device profile is unknown or malformed, or does not fit the bundle."""


class CaptionError(T2VError):
    """A caption that cannot be tokenized: empty, too long, or not text."""


class CueError(CaptionError):
    """A file of captions that cannot be read. The message names the line."""


class SinkError(T2VError):
    """Frames cannot be written where they were asked to go."""


class ProtocolError(T2VError):
    """A message of the live protocol that cannot be honoured (docs/protocol.md).

    code: one of the protocol's, for programs.
    message: what is wrong.
    remedy: what to do.
    """

    def __init__(self, code: str, message: str, remedy: str) -> None:
        super().__init__(f"{message}; {remedy}")
        self.code = code
        self.message = message
        self.remedy = remedy


class ServerError(T2VError):
    """The live server cannot start: an address, a certificate or a token cannot be used."""


class ClientError(T2VError):
    """The live server cannot be reached, or the connection to it is lost."""
