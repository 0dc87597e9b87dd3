from __future__ import annotations

import io
import json

from t2v_edge.commands.output import Progress, print_result


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(total, done, **options):
    out = Terminal()
    progress = Progress("run", total, out, **options)
    progress._shown -= 1.0  # as if the last refresh were long ago
    progress.update(done)
    return out.getvalue()


def test_what_is_counted_is_shown_with_its_rate():
    assert "] 5/10 " in shown(10, 5) and "fps" in shown(10, 5)
    assert "3 frames" in shown(None, 3)
    percent = shown(100, 50, unit="%/s")
    assert "[##############..............] 50/100 " in percent and percent.endswith(" %/s ")


def test_progress_is_silent_where_nobody_looks_and_cleared_at_the_end():
    quiet = io.StringIO()
    progress = Progress("run", 1, quiet)
    progress.update(1)
    progress.close()
    assert quiet.getvalue() == ""
    out = Terminal()
    Progress("run", 1, out).close()
    assert out.getvalue() == "\r\x1b[K"


def test_results_are_json_for_machines_and_text_for_people():
    for as_json, wanted in ((True, {"a": "é"}), (False, "words")):
        out = io.StringIO()
        print_result({"a": "é"}, "words", as_json, out)
        assert (json.loads(out.getvalue()) if as_json else out.getvalue().rstrip("\n")) == wanted
