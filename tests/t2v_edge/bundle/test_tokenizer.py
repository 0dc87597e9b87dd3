from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, models

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


class Panic(BaseException):
    """Stands in for a panic of the library, which is no `Exception`."""


@pytest.mark.parametrize("error", [Exception("no unknown token"), Panic("a broken map"), ValueError("a long template")])
def test_whatever_the_library_raises_is_a_caption_error(tokenizer, error):
    class Failing:
        def encode(self, text):
            raise error

    tokenizer._tokenizer = Failing()
    with pytest.raises(CaptionError, match=r"'a person' cannot be tokenised .*; reword it"):
        tokenizer("a person")


def test_ctrl_c_is_not_taken_for_an_error_of_the_tokenizer(tokenizer):
    class Interrupted:
        def encode(self, text):
            raise KeyboardInterrupt

    tokenizer._tokenizer = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        tokenizer("a person")


def test_a_word_that_the_vocabulary_lacks_is_a_caption_error():
    model = models.WordLevel({"[PAD]": 0, "a": 1}, unk_token="[UNK]")  # which the vocabulary does not have
    tokenizer = CaptionTokenizer(Tokenizer(model).to_str().encode(), tokens=8, pad_id=0)
    assert tokenizer("a").ids[0, 0] == 1
    with pytest.raises(CaptionError, match="reword it"):
        tokenizer("b")


def test_a_tokenizer_that_adds_more_tokens_than_fit_is_a_bundle_error(tiny):
    for tokens in (1, 2):
        with pytest.raises(BundleError, match=f"adds 2 tokens to a caption, the text stage takes {tokens}"):
            CaptionTokenizer(tiny.files["tokenizer.json"], tokens, pad_id=0)
    assert CaptionTokenizer(tiny.files["tokenizer.json"], 3, pad_id=0)("a person").ids.shape == (1, 3)
