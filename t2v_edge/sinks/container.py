"""The base of the sinks that use PyAV: one video stream in a file that is renamed into place when it is whole."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Optional

import av

from t2v_edge.errors import SinkError
from t2v_edge.frame import Frame
from t2v_edge.sinks.base import Sink, check_frame
from t2v_edge.sinks.marks import VIDEO
from t2v_edge.util.files import atomic_file


class ContainerSink(Sink):
    """The base of the sinks that mux with PyAV. A subclass has `_start`, which adds the stream,
    `_packets`, and `_mark`.
    """

    def __init__(self, target: str, size: tuple[int, int], options: Mapping[str, str]) -> None:
        self._target = target
        self._size = size
        self._frames = 0
        self._exits = ExitStack()
        with ExitStack() as opened:
            try:
                self._temporary = opened.enter_context(atomic_file(Path(target), VIDEO))
                self._container: Any = av.open(str(self._temporary), "w", options=dict(options))
            except (OSError, ValueError) as error:
                raise SinkError(f"{target} cannot be written ({error}); check its folder and permissions") from error
            try:
                self._start(self._container)
            except BaseException:
                self._container.close()
                raise
            self._exits = opened.pop_all()

    @abstractmethod
    def _start(self, container: Any) -> None: ...

    @abstractmethod
    def _mark(self, path: Path) -> None:
        """Mark a whole file as ours."""

    @abstractmethod
    def _packets(self, frame: Optional[Frame]) -> Any:
        """The packets of `frame`. None: the packets that the encoder still holds."""

    def write(self, frame: Frame) -> bool:
        check_frame(frame, self._size, self._target)
        self._mux(frame)
        self._frames += 1
        return True

    def _mux(self, frame: Optional[Frame]) -> None:
        try:
            for packet in self._packets(frame):
                self._container.mux(packet)
        except (OSError, ValueError) as error:  # PyAV's FFmpegError is one or the other
            raise SinkError(f"{self._target} cannot be written ({error}); check the space on the disk") from error

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Any) -> None:
        try:
            with self._exits:
                try:
                    if error is None:
                        self._complete()
                finally:
                    self._close(quietly=error is not None)
                if error is not None:
                    raise _Abandoned
                self._mark(self._temporary)
        except _Abandoned:
            pass  # the temporary file is gone, and the caller's exception goes on
        except OSError as failure:
            raise SinkError(f"{self._target} cannot be finished ({failure}); check its folder") from failure

    def _complete(self) -> None:
        if not self._frames:
            raise SinkError(f"{self._target}: no frame came, so nothing is written; ask for more seconds")
        self._mux(None)

    def _close(self, quietly: bool) -> None:
        try:
            self._container.close()
        except (OSError, ValueError) as failure:
            if not quietly:
                raise SinkError(f"{self._target} cannot be finished ({failure}); check the disk") from failure


class _Abandoned(Exception):
    """Makes the atomic file remove its temporary."""
