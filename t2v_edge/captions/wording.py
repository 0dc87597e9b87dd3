"""The words of a caption, so that two captions can be compared by meaning and not only by spelling."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

# Articles, forms of "to be" and "to have", fillers of speech, and what an apostrophe leaves behind. Words that change
# the picture are not here: he and she, numbers, not, no, with, without, on, off, up, down.
FUNCTION_WORDS = frozenset(
    "a an the is are am was were be being been has have had this that these there it its who which and of to in at by "
    "for as please um uh er erm hmm s re m ve d ll".split()
)
FUNCTION_CHARACTERS = frozenset("的了着地得在是一个個位名正有这這那和与與嗯啊呃吧呢请請")

# Scripts without spaces count by character: Han, kana, and the marks that repeat a character.
_UNSPACED = "\u3005\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# Each pictograph counts as a word.
_PICTURES = "\u2600-\u27bf\U0001f000-\U0001faff"
_UNITS = re.compile(f"([{_UNSPACED}])|([{_PICTURES}]|[^\\W_{_UNSPACED}{_PICTURES}]+)")


class WordingChange(NamedTuple):
    """The difference between two wordings, in words and in characters of scripts without spaces."""

    words: int
    characters: int


@dataclass(frozen=True, eq=False)
class Wording:
    """The words of a text, for comparison.

    units: every word and unspaced character, in order, without case or punctuation.
    words, characters: those that carry meaning, with their counts.
    """

    units: tuple[str, ...]
    words: Counter[str]
    characters: Counter[str]

    @classmethod
    def of(cls, text: str) -> Wording:
        """The wording of a text, in time linear in its length."""
        units, words, characters = [], Counter[str](), Counter[str]()
        for character, word in _UNITS.findall(text.casefold()):
            units.append(character or word)
            if character and character not in FUNCTION_CHARACTERS:
                characters[character] += 1
            elif word and word not in FUNCTION_WORDS:
                words[word] += 1
        return cls(tuple(units), words, characters)

    @property
    def says_something(self) -> bool:
        """Whether any word or character carries meaning."""
        return bool(self.words or self.characters)

    def change_to(self, other: Wording, only_added: bool = False) -> WordingChange:
        """How many words `other` adds, or leaves out if that is more. An exchanged word counts once.

        The same words in another order ("dog bites man") count as one word. only_added: ignore what `other` leaves out.
        """
        words = _larger(other.words - self.words, self.words - other.words, only_added)
        characters = _larger(other.characters - self.characters, self.characters - other.characters, only_added)
        if self.words == other.words and self.characters == other.characters and self._order() != other._order():
            words = 1
        return WordingChange(words, characters)

    def _order(self) -> tuple[str, ...]:
        return tuple(unit for unit in self.units if unit in self.words or unit in self.characters)


def _larger(added: Counter[str], removed: Counter[str], only_added: bool) -> int:
    return max(sum(added.values()), 0 if only_added else sum(removed.values()))
