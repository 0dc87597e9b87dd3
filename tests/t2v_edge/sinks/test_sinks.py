from __future__ import annotations

import io
import os
from fractions import Fraction
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest

from t2v_edge.errors import SinkError
from t2v_edge.frame import Frame
from t2v_edge.sinks import open_sink, window
from t2v_edge.sinks.gif import gif_ticks
from t2v_edge.sinks.raw import RawSink
from t2v_edge.sinks.sheet import ContactSheet, contact_sheet
from t2v_edge.sinks.window import WindowPacer

SIZE = (48, 32)
RATES = [16, 24, 30, 60, 72, 90, Fraction(30000, 1001)]


def make_frames(count, fps=16, size=SIZE):
    """Smooth pictures whose brightness tells their index."""
    width, height = size
    ramp = np.linspace(0, 60, width)[None, :, None] + np.linspace(0, 40, height)[:, None, None]
    for index in range(count):
        pixels = (ramp + np.array([100, 60, 20]) * (0.5 + index / count)).astype(np.uint8)
        yield Frame(pixels, index, index, 1 / Fraction(fps), index // 10, "a caption")


def write(target, frames, fps=16, size=SIZE):
    with open_sink(str(target), Fraction(fps), size) as sink:
        for frame in frames:
            assert sink.write(frame)


def read(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(video=0))
        times = [frame.pts * frame.time_base for frame in frames]
        return stream, times, [frame.to_ndarray(format="rgb24") for frame in frames]


@pytest.mark.parametrize("fps", RATES)
def test_mp4_has_every_frame_at_its_exact_time(tmp_path, fps):
    write(tmp_path / "x.mp4", make_frames(50, fps), fps)
    stream, times, pictures = read(tmp_path / "x.mp4")
    assert times == [index / Fraction(fps) for index in range(50)]
    assert stream.average_rate == fps
    assert stream.codec_context.pix_fmt == "yuv420p"
    for frame, picture in zip(make_frames(50, fps), pictures):
        assert np.abs(frame.pixels.astype(int) - picture).mean() < 4  # of 255: compression and 4:2:0 colour


def test_mp4_can_start_before_it_is_whole(tmp_path):
    write(tmp_path / "x.mp4", make_frames(20))
    data = (tmp_path / "x.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_mp4_falls_back_where_x264_is_absent(tmp_path, monkeypatch):
    monkeypatch.setattr(av.codec, "codecs_available", {"mpeg4"})
    write(tmp_path / "x.mp4", make_frames(20, 72), 72)
    stream, times, _ = read(tmp_path / "x.mp4")
    assert stream.codec_context.name == "mpeg4"
    assert times == [Fraction(index, 72) for index in range(20)]


def test_mp4_of_odd_sides_is_refused(tmp_path):
    with pytest.raises(SinkError, match="even sides"):
        open_sink(str(tmp_path / "x.mp4"), Fraction(16), (33, 32))


@pytest.mark.parametrize("fps", [16, 24, 30, 50])
def test_gif_has_every_frame_at_the_nearest_hundredth_and_loops(tmp_path, fps):
    write(tmp_path / "x.gif", make_frames(40, fps), fps)
    _, times, pictures = read(tmp_path / "x.gif")
    assert len(times) == 40
    assert all(abs(at - Fraction(index, fps)) <= Fraction(1, 200) for index, at in enumerate(times))
    for frame, picture in zip(make_frames(40, fps), pictures):
        assert np.abs(frame.pixels.astype(int) - picture).mean() < 6  # of 255: 256 colours, ordered dither
    assert b"NETSCAPE2.0\x03\x01\x00\x00" in (tmp_path / "x.gif").read_bytes()


@pytest.mark.parametrize("fps", [60, 72, 90])
def test_gif_leaves_out_frames_that_no_browser_would_show_in_time(tmp_path, fps):
    write(tmp_path / "x.gif", make_frames(fps, fps), fps)
    _, times, _ = read(tmp_path / "x.gif")
    assert min(b - a for a, b in zip(times, times[1:])) >= Fraction(2, 100)
    assert abs(times[-1] - 1) < Fraction(6, 100)


def test_gif_times_do_not_drift():
    assert [gif_ticks(Fraction(index, 16)) for index in (1, 2, 16, 1600)] == [6, 13, 100, 10_000]


def test_png_sequence_is_lossless(tmp_path):
    write(tmp_path / "frames" / "%04d.png", make_frames(5))
    assert sorted(os.listdir(tmp_path / "frames")) == [f"{i:04d}.png" for i in range(5)]
    for frame in make_frames(5):
        picture = cv2.imread(str(tmp_path / "frames" / f"{frame.index:04d}.png"))
        assert np.array_equal(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), frame.pixels)


@pytest.mark.parametrize("pattern", ["x.png", "%s.png", "%d%d.png", "%n.png", "a%d/b%d.png", "%99d.png", "%(x)d.png"])
def test_a_png_pattern_without_exactly_one_number_is_refused(tmp_path, pattern):
    with pytest.raises(SinkError, match="frames/%04d.png"):
        open_sink(str(tmp_path / pattern), Fraction(16), SIZE)


def test_raw_is_the_pixels_and_nothing_else():
    out = io.BytesIO()
    with RawSink(out, SIZE) as sink:
        for frame in make_frames(3):
            sink.write(frame)
    assert out.getvalue() == b"".join(frame.pixels.tobytes() for frame in make_frames(3))


@pytest.mark.parametrize("name", ["x.mp4", "x.gif"])
@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failed_run_leaves_the_previous_file_and_nothing_else(tmp_path, name, failure):
    write(tmp_path / name, make_frames(2))
    previous = (tmp_path / name).read_bytes()
    with pytest.raises(failure), open_sink(str(tmp_path / name), Fraction(16), SIZE) as sink:
        for frame in make_frames(30):
            sink.write(frame)
        raise failure
    assert os.listdir(tmp_path) == [name]
    assert (tmp_path / name).read_bytes() == previous


@pytest.mark.parametrize("name", ["x.mp4", "x.gif"])
def test_a_run_without_frames_is_an_error_and_leaves_nothing(tmp_path, name):
    with pytest.raises(SinkError, match="no frame came"):
        write(tmp_path / name, [])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["x.mp4", "x.gif", "%d.png"])
def test_a_frame_of_another_size_is_refused(tmp_path, name):
    with pytest.raises(SinkError, match="16x16x3 came"):
        write(tmp_path / name, make_frames(1, size=(16, 16)))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["x.avi", "x", "x.mp4.txt"])
def test_an_unknown_kind_names_the_known_ones(name):
    with pytest.raises(SinkError, match="x.mp4, x.gif"):
        open_sink(name, Fraction(16), SIZE)


def test_a_folder_is_not_overwritten(tmp_path):
    (tmp_path / "x.mp4").mkdir()
    with pytest.raises(SinkError, match="is a folder"):
        open_sink(str(tmp_path / "x.mp4"), Fraction(16), SIZE)


def test_a_place_that_cannot_be_written_is_a_sink_error(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("x.mp4", "x.gif", "%d.png"):
        with pytest.raises(SinkError, match="cannot be written"):
            write(tmp_path / "file" / name, make_frames(1))


# -- window -----------------------------------------------------------------------------------------------------


def fake_cv2(keys, visible=1.0):
    """An OpenCV with a screen: it remembers what is shown and presses `keys` in turn."""
    shown, waits = [], []
    return SimpleNamespace(
        error=cv2.error,
        COLOR_RGB2BGR=cv2.COLOR_RGB2BGR,
        WINDOW_AUTOSIZE=1,
        WND_PROP_VISIBLE=4,
        shown=shown,
        waits=waits,
        destroyWindow=lambda _: None,
        cvtColor=cv2.cvtColor,
        namedWindow=lambda *_: None,
        imshow=lambda _, pixels: shown.append(pixels),
        waitKey=lambda ms: waits.append(ms) or keys.pop(0),
        getWindowProperty=lambda *_: visible,
    )


def test_window_shows_frames_until_q_is_pressed(monkeypatch):
    fake = fake_cv2([-1, -1, ord("q")])
    monkeypatch.setattr(window, "cv2", fake)
    with open_sink("window", Fraction(16), SIZE) as sink:
        goes_on = [sink.write(frame) for frame in make_frames(3)]
    assert goes_on == [True, True, False]
    assert np.array_equal(fake.shown[0][:, :, ::-1], next(make_frames(1)).pixels)
    assert all(1 <= wait <= 250 for wait in fake.waits)


def test_window_stops_when_it_is_closed(monkeypatch):
    monkeypatch.setattr(window, "cv2", fake_cv2([-1], visible=0.0))
    with open_sink("window", Fraction(16), SIZE) as sink:
        assert not sink.write(next(make_frames(1)))


def test_window_without_a_screen_names_the_remedy(monkeypatch):
    fake = fake_cv2([])

    def no_window(*_):
        raise cv2.error("not implemented")

    fake.namedWindow = no_window
    monkeypatch.setattr(window, "cv2", fake)
    with pytest.raises(SinkError, match="opencv-python"):
        open_sink("window", Fraction(16), SIZE)


def test_pacer_waits_for_absolute_times_and_starts_anew_after_a_stall():
    now = [100.0]
    pacer = WindowPacer(lambda: now[0])
    waits = []
    for index, took in enumerate([0.01, 0.05, 0.01, 1.0, 0.01]):
        waits.append(pacer.wait_s(Fraction(index, 10)))
        now[0] += waits[-1] + took
    assert waits == pytest.approx([0, 0.09, 0.05, 0.09, 0])  # the last one comes late and is shown at once
    assert pacer.wait_s(Fraction(5, 10)) == pytest.approx(0.09)


# -- contact sheet ----------------------------------------------------------------------------------------------


def test_sheet_spreads_its_cells_over_the_stream(tmp_path):
    sheet = ContactSheet(100, cells=4)
    for frame in make_frames(100):
        sheet.add(frame)
    sheet.save(tmp_path / "out" / "sheet.png")
    picture = cv2.cvtColor(cv2.imread(str(tmp_path / "out" / "sheet.png")), cv2.COLOR_BGR2RGB)
    frames = list(make_frames(100))
    for cell, index in enumerate((12, 37, 62, 87)):
        left = 4 + cell * (SIZE[0] + 4)
        assert np.array_equal(picture[4 : 4 + SIZE[1], left : left + SIZE[0]], frames[index].pixels)


def test_sheet_of_an_endless_stream_keeps_evenly_spaced_frames():
    sheet = ContactSheet(None, cells=4)
    for frame in make_frames(100):
        sheet.add(frame)
    kept = [index for index, _, _ in sheet._kept]
    assert 4 <= len(kept) <= 8
    assert kept == [16 * i for i in range(len(kept))]


def test_sheet_shrinks_large_frames_and_refuses_none():
    sheet = ContactSheet(1)
    sheet.add(next(make_frames(1, size=(1024, 512))))
    assert sheet.pixels().shape == (4 + 128 + 20 + 4, 4 + 256 + 4, 3)
    with pytest.raises(SinkError, match="no frame"):
        contact_sheet([])
