from __future__ import annotations

from fractions import Fraction

import pytest

from t2v_edge.errors import UsageError
from t2v_edge.live.options import LiveOptions
from t2v_edge.play.options import MotionOptions
from t2v_edge.play.stream import StreamOptions
from t2v_edge.util.limits import MAX_SEED, MAX_SIDE

WALK = ((0.0, "a person is walking"),)
KINDS = [MotionOptions, LiveOptions, lambda **options: StreamOptions(WALK, **options)]


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize(
    "options, named",
    [
        *(({"smoothing": value}, "smoothing") for value in (-0.1, 1.0, float("nan"))),
        *(({"seed": value}, "seed") for value in (-1, MAX_SEED + 1)),
        *(({"size": value}, "size") for value in ((0, 8), (8, MAX_SIDE + 1))),
        ({"blend_steps": -1}, "blend_steps"),
    ],
)
def test_every_kind_of_stream_refuses_the_same_values(make, options, named):
    with pytest.raises(UsageError, match=f"{named} is "):
        make(**options)


@pytest.mark.parametrize("make", KINDS)
def test_every_kind_of_stream_takes_the_extremes(make):
    options = make(fps="30000/1001", size=(MAX_SIDE, 1), seed=MAX_SEED, smoothing=0.999, blend_steps=0)
    assert options.clock(16).fps == Fraction(30000, 1001)
    assert make().clock(16).fps == 16


def test_captions_come_first_in_a_stream_s_options():
    assert StreamOptions(WALK) == StreamOptions(captions=WALK)
