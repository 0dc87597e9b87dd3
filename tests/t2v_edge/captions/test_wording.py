from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from t2v_edge.captions.wording import Wording


@pytest.mark.parametrize(
    "one, other",
    [
        ("he is walking", "she is walking"),
        ("a man with a hat", "a man without a hat"),
        ("walks up", "walks down"),
        ("a red shirt", "a red shirt 🏀"),
        ("two people", "three people"),
        ("穿红衣服的人", "穿蓝色衣服的人"),
    ],
)
def test_what_changes_the_picture_is_no_function_word(one, other):
    change = Wording.of(one).change_to(Wording.of(other))
    assert change.words >= 1 or change.characters >= 2


@pytest.mark.parametrize(
    "one, other",
    [
        ("a person is running", "The person, who is running!"),
        ("um a dog", "A DOG."),
        ("a person's hat", "a person hat"),
        ("一个人在跑步", "有一位人正在跑步。"),
        ("in a room", "room"),
    ],
)
def test_what_changes_nothing_that_is_seen_does_not_count(one, other):
    assert Wording.of(one).change_to(Wording.of(other)) == (0, 0)


def test_a_word_exchanged_is_one_change_and_only_what_is_added_can_be_asked_for():
    red, blue, longer = map(Wording.of, ("a red shirt", "a blue shirt", "a red shirt 穿红衣"))
    assert red.change_to(blue) == (1, 0)
    assert red.change_to(longer) == (0, 3) == longer.change_to(red)
    assert longer.change_to(red, only_added=True) == (0, 0)


@given(st.text(max_size=60), st.text(max_size=60))
def test_a_change_is_as_large_there_as_back_and_none_from_a_text_to_itself(one, other):
    one, other = Wording.of(one), Wording.of(other)
    assert one.change_to(other) == other.change_to(one)
    assert one.change_to(one) == (0, 0)
