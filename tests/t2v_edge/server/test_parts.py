"""Parts of the live server by themselves: what waits, what is counted, how frames are encoded."""

from __future__ import annotations

import asyncio
import sys

import cv2
import numpy as np
import pytest

from t2v_edge.errors import ProtocolError
from t2v_edge.remote.protocol import FORMATS
from t2v_edge.server.encode import check_format, encode
from t2v_edge.server.metrics import EventRate, Metrics
from t2v_edge.server.outbox import MAX_TEXTS, Outbox


def test_messages_go_first_and_in_order_and_of_frames_the_newest():
    async def scenario():
        outbox: Outbox[int] = Outbox()
        for frame in (1, 2, 3):
            outbox.put_frame(frame)
        assert outbox.put_text("a") and outbox.put_text("b")
        assert (outbox.texts, outbox.frames, outbox.dropped) == (2, 1, 2)
        assert [await outbox.get() for _ in range(3)] == ["a", "b", 3]
        waiting = asyncio.ensure_future(outbox.get())
        await asyncio.sleep(0)
        assert not waiting.done() and (outbox.texts, outbox.frames) == (0, 0)
        outbox.put_frame(4)
        assert await waiting == 4 and outbox.dropped == 2
        assert [outbox.put_text(str(i)) for i in range(MAX_TEXTS + 1)] == [True] * MAX_TEXTS + [False]
        assert outbox.drain() == [str(i) for i in range(MAX_TEXTS)] and outbox.texts == 0

    asyncio.run(scenario())


def test_a_rate_is_of_the_last_seconds():
    rate = EventRate(window_s=2.0)
    assert rate.per_s(0.0) == 0.0
    for i in range(41):
        rate.add(i / 20)
    assert rate.per_s(2.0) == pytest.approx(20)
    assert rate.per_s(5.0) == 0.0


def test_metrics_are_counters_gauges_and_quantiles():
    metrics = Metrics()
    metrics.count("t2v_refused_total", code="token")
    metrics.count("t2v_refused_total", 2, code="origin")
    for elapsed_ms in range(101):
        metrics.time("send", float(elapsed_ms))
    lines = metrics.to_text({("t2v_clients", ()): 3, ("t2v_fps", ()): 59.94}).splitlines()
    assert 't2v_refused_total{code="token"} 1' in lines and 't2v_refused_total{code="origin"} 2' in lines
    assert "t2v_clients 3" in lines and "t2v_fps 59.94" in lines and "t2v_sessions_total 0" in lines
    assert 't2v_latency_ms{stage="send",quantile="0.95"} 95.000' in lines
    assert 't2v_latency_ms_sum{stage="send"} 5050.000' in lines and 't2v_latency_ms_count{stage="send"} 101' in lines
    types = [line.split()[2:] for line in lines if line.startswith("# TYPE")]
    assert ["t2v_latency_ms", "summary"] in types and len(types) == len({name for name, _ in types})
    assert Metrics().to_text({}).endswith("\n")


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_picture_back(kind):
    pixels = np.zeros((24, 40, 3), np.uint8)
    pixels[:, :20] = 200, 100, 50
    check_format(kind)
    payload = encode(pixels, kind, 95)
    if kind == "raw":
        assert payload == pixels.tobytes()
        return
    back = cv2.imdecode(np.frombuffer(payload, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    # red, green and blue in their places; quality 95 is within a few levels on flat colours
    assert np.abs(back[12, 5].astype(int) - (200, 100, 50)).max() <= 6 and back[12, 35].max() <= 6
    assert len(encode(pixels, kind, 5)) <= len(payload)


def test_without_opencv_only_raw_can_be_had(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    check_format("raw")
    with pytest.raises(ProtocolError, match="no OpenCV to make jpeg"):
        check_format("jpeg")
    assert encode(np.ones((1, 2, 3), np.uint8), "raw", 1) == b"\x01" * 6
