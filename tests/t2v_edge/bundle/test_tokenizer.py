from __future__ import annotations

import numpy as np
import pytest

from t2v_edge.bundle.tokenizer import CaptionTokenizer, normalise
from t2v_edge.errors import BundleError, CaptionError
from t2v_edge.util.limits import MAX_CAPTION_CHARACTERS


@pytest.fixture
def tokenizer(tiny):
    return CaptionTokenizer(tiny.files["tokenizer.json"], tokens=8, pad_id=0)


def test_tokens_are_padded_and_masked(tokenizer):
    tokens = tokenizer("a person is walking")
    assert tokens.ids.dtype == tokens.mask.dtype == np.int64
    assert tokens.ids.tolist() == [[2, 4, 5, 6, 7, 3, 0, 0]]
    assert tokens.mask.tolist() == [[1, 1, 1, 1, 1, 1, 0, 0]]
    assert not tokens.truncated


def test_a_long_caption_is_cut_with_its_end_token_kept_and_flagged(tokenizer):
    tokens = tokenizer("a person is walking a person is running")
    assert tokens.truncated
    assert tokens.ids.shape == (1, 8)
    assert tokens.ids[0, -1] == 3


def test_chinese_is_tokenized_by_character(tokenizer):
    assert tokenizer("一个人").ids.tolist() == [[2, 11, 12, 13, 3, 0, 0, 0]]


def test_captions_are_normalised():
    assert normalise(" Ａ\tperson\u0000 \u200bis\n walking\ud800 ") == "A person is walking"


@pytest.mark.parametrize("caption", ["", "  \n\t", "\u200b\u0007"])
def test_an_empty_caption_is_refused(caption):
    with pytest.raises(CaptionError, match="empty"):
        normalise(caption)


@pytest.mark.parametrize("caption", [None, 3, b"a person", ["a"]])
def test_what_is_not_text_is_refused(caption):
    with pytest.raises(CaptionError, match="must be a string"):
        normalise(caption)


def test_a_caption_that_is_or_becomes_too_long_is_refused():
    assert normalise("x" * MAX_CAPTION_CHARACTERS)
    for caption in ("x" * (MAX_CAPTION_CHARACTERS + 1), "\ufdfa" * 100):  # NFKC makes 18 characters of U+FDFA
        with pytest.raises(CaptionError, match="shorten it"):
            normalise(caption)


@pytest.mark.parametrize("broken", [b"", b"{}", b"\xff\xfe", b'{"model": 3}'])
def test_a_broken_tokenizer_file_is_a_bundle_error(broken):
    with pytest.raises(BundleError, match="tokenizer.json"):
        CaptionTokenizer(broken, 8, 0)


def test_a_pad_id_outside_the_vocabulary_is_refused(tiny):
    with pytest.raises(BundleError, match="pad_id"):
        CaptionTokenizer(tiny.files["tokenizer.json"], 8, 9999)
