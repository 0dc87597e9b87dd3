"""The tokenizer of captions. It needs the library `tokenizers`, and not transformers."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from t2v_edge.errors import BundleError, CaptionError, T2VError
from t2v_edge.util.limits import MAX_CAPTION_CHARACTERS

_DROPPED = ("Cc", "Cf", "Cs", "Co")


@dataclass(frozen=True, eq=False)
class TokenizedCaption:
    """A caption, normalised and tokenised: what the text stage reads.

    `ids` and `mask`: int64 (1, tokens), padded. `text`: the normalised caption. `truncated`: its end is cut, because
    it has more tokens than the text stage takes.
    """

    ids: npt.NDArray[np.int64]
    mask: npt.NDArray[np.int64]
    text: str
    truncated: bool


def normalise(caption: str) -> str:
    """The caption in NFKC form, without control characters, with single spaces.

    Raises `CaptionError` for what is not text, is empty, or is longer than `MAX_CAPTION_CHARACTERS`.
    """
    if not isinstance(caption, str):
        raise CaptionError(f"a caption must be a string, not {type(caption).__name__}; decode or join it first")
    _check_length(caption)
    text = tidy(caption)
    _check_length(text)
    if not text:
        raise CaptionError('the caption is empty; say what should be seen, for example "a person is walking"')
    return text


def tidy(text: str) -> str:
    """Any text in NFKC form, without control characters, with single spaces. It may be empty."""
    spaced = "".join(" " if c.isspace() else c for c in unicodedata.normalize("NFKC", text))
    kept = "".join(c for c in spaced if unicodedata.category(c) not in _DROPPED)
    return " ".join(kept.split())


def _check_length(text: str) -> None:
    if len(text) > MAX_CAPTION_CHARACTERS:
        raise CaptionError(
            f"the caption has {len(text)} characters, at most {MAX_CAPTION_CHARACTERS} are taken; shorten it"
        )


@contextmanager
def tokenizer_errors(kind: type[T2VError], problem: str, remedy: str) -> Iterator[None]:
    """Raise `kind` for whatever the library `tokenizers` raises. Its panics are not even `Exception`s."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, T2VError):
        raise
    except BaseException as error:
        raise kind(f"{problem} ({error}); {remedy}") from error


class CaptionTokenizer:
    """A converter of captions to the text stage's inputs. It is immutable, and threads may share it.

    tokenizer_json: a Hugging Face ``tokenizer.json``. Raises `BundleError` if it cannot be read or does not fit.
    tokens: the static length, padded with `pad_id`.
    """

    def __init__(self, tokenizer_json: bytes, tokens: int, pad_id: int) -> None:
        with tokenizer_errors(BundleError, "tokenizer.json cannot be read", "export the bundle again"):
            tokenizer = Tokenizer.from_str(tokenizer_json.decode("utf-8"))
            added = tokenizer.num_special_tokens_to_add(False)
            if added >= tokens:
                raise BundleError(
                    f"tokenizer.json adds {added} tokens to a caption, the text stage takes {tokens}; export with more"
                )
            tokenizer.no_padding()
            tokenizer.enable_truncation(max_length=tokens)
        if not 0 <= pad_id < tokenizer.get_vocab_size():
            raise BundleError(f"pad_id {pad_id} is not in the tokenizer's vocabulary; export the bundle again")
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._pad_id = pad_id

    def __call__(self, caption: str) -> TokenizedCaption:
        """Normalise and tokenise one caption; raises `CaptionError`."""
        return self.tokenise(normalise(caption))

    def tokenise(self, text: str) -> TokenizedCaption:
        """Tokenise a text that `normalise` gave. Raises `CaptionError` for a text without tokens."""
        with tokenizer_errors(CaptionError, f"the caption {text[:40]!r} cannot be tokenised", "reword it"):
            encoding = self._tokenizer.encode(text)
        if not 0 < len(encoding.ids) <= self._tokens:
            raise CaptionError(f"the caption {text[:40]!r} has no tokens in this model's vocabulary; reword it")
        ids = np.full((1, self._tokens), self._pad_id, np.int64)
        mask = np.zeros((1, self._tokens), np.int64)
        ids[0, : len(encoding.ids)] = encoding.ids
        mask[0, : len(encoding.ids)] = 1
        return TokenizedCaption(ids, mask, text, bool(encoding.overflowing))
