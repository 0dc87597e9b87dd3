"""The page of ``t2v-edge serve`` in real headless Chromium: each test is a scenario of ``browser/``."""

from __future__ import annotations

import pytest

from t2v_edge.commands.serve import open_stream
from t2v_edge.pipeline import Pipeline
from t2v_edge.server.access import Access, open_tls
from t2v_edge.server.limits import Limits
from tests.t2v_edge.conftest import make_tiny
from tests.t2v_edge.live_samples import make_certificate, needs_openssl
from tests.web.web_samples import Server, run_scenario, why_no_browser

WHY_NOT = why_no_browser()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")


def test_typing_a_caption_changes_the_picture(tmp_path):
    with Server() as server:
        run_scenario("captions", server, tmp_path)


@needs_openssl
def test_over_tls_the_page_is_the_same(tmp_path):
    certificate, key = make_certificate(tmp_path)
    with Server(tls=open_tls(certificate, key)) as server:
        assert server.server.page_url.startswith("https://")
        run_scenario("captions", server, tmp_path)


def test_the_stream_survives_a_restart_of_the_server(tmp_path):
    with Server() as server:
        run_scenario("restart", server, tmp_path, stop=server.stop, start=server.start)


def test_the_page_asks_for_the_token_that_the_server_needs(tmp_path):
    with Server(access=Access(token="correct-horse-battery")) as server:
        run_scenario("token", server, tmp_path)


def test_a_full_server_takes_the_page_once_there_is_room(tmp_path):
    with Server(limits=Limits(clients=1)) as server:
        run_scenario("capacity", server, tmp_path)


def test_everything_can_be_done_and_understood_from_the_keyboard(tmp_path):
    with Server() as server:
        run_scenario("keyboard", server, tmp_path)


def test_every_format_is_shown_and_every_setting_is_sent(tmp_path):
    with Server() as server:
        run_scenario("settings", server, tmp_path)


def test_speech_becomes_captions_and_its_absence_is_explained(tmp_path):
    with Server() as server:
        run_scenario("speech", server, tmp_path)


def test_the_page_fits_and_can_be_read_narrow_wide_light_and_dark(tmp_path):
    with Server() as server:
        run_scenario("look", server, tmp_path)


def test_a_quest_3_sees_the_moving_stream_in_both_eyes_in_vr(tmp_path):
    with Server() as server:
        run_scenario("vr", server, tmp_path)


def test_a_quest_3_sees_the_stream_in_its_room_in_ar_and_through_a_restart(tmp_path):
    with Server() as server:
        run_scenario("ar", server, tmp_path, stop=server.stop, start=server.start)


def test_captions_change_the_picture_of_a_real_pipeline(tmp_path):
    path = make_tiny().write(tmp_path / "bundle")
    with Pipeline.open(path, threads=1) as pipeline, Server(lambda settings: open_stream(pipeline, settings)) as server:
        run_scenario("model", server, tmp_path)
