"""Tasks spread over processes, each with engines of its own."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import cv2

Work = Callable[[Any, Any], Any]
"""A module-level function of what a worker has open and of one argument."""

_open_in_worker: list[Any] = []  # a pool hands its workers nothing else that lives from task to task


def perform(context: Any, tasks: Sequence[tuple[Work, Any]], processes: int) -> Iterator[Any]:
    """Do every task and yield the results in order, in `processes` processes.

    `context` is given to each task; it is sent to the workers, so it pickles small and opens on first use. Where the
    caller stops, or Ctrl-C is pressed, unfinished work is dropped and the processes end.
    """
    if processes <= 1:
        yield from (work(context, argument) for work, argument in tasks)
        return
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start, (context,))
    try:
        yield from pool.map(_work, tasks, chunksize=1)
    except BaseException:
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start(context: Any) -> None:
    # Ctrl-C reaches the whole group of processes: workers go at once and without a traceback each.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    cv2.setNumThreads(1)
    _open_in_worker[:] = [context]


def _work(task: tuple[Work, Any]) -> Any:
    work, argument = task
    return work(_open_in_worker[0], argument)
