"""Captions for the reference model: a grammar over `vocabulary.SLOTS` in English and Chinese.

`grammar/en.json` and `grammar/zh.json` hold the words. Every action has its phrasings. Every look has the words and
patterns that name it. Each is divided into ``train``, ``validation`` and ``heldout`` lists. This module composes them
into sentences.

- ``train``: training phrasings and sentence patterns; never a pair of `HELD_OUT_PAIRS`.
- ``validation``: action phrasings and patterns of its own, for choosing when to stop; looks as in training.
- ``heldout``: for judging only. A caption of it has an action phrasing never trained on, or names a pair of
  `HELD_OUT_PAIRS` (composition), or both.

In English action phrasings, ``jumping/jumps/jump`` stands for the three forms a sentence may need; an
underscore is a space inside a form.
"""

from __future__ import annotations

import csv
import functools
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from examples.reference.vocabulary import ACTIONS, SLOTS

LANGUAGES = ("en", "zh")
SPLITS = ("train", "validation", "heldout")
HELD_OUT_COUNT, HELD_OUT_SEED = 1200, 2026
MAX_UNITS = 42
"""Words, Chinese characters and marks in a caption at most: so that it fits 48 tokens with a little to spare."""

HELD_OUT_PAIRS: frozenset[tuple[str, str, str]] = frozenset(
    (action, slot, SLOTS[slot][number % len(SLOTS[slot])])
    for index, action in enumerate(ACTIONS)
    for slot, number in (("shirt", 3 * index), ("shirt", 3 * index + 4), ("trousers", 5 * index + 1))
)
"""(action, slot, value) never named together in training: two shirts and one colour of trousers an action."""

_NAMED_SHARE = {"build": 0.7, "skin": 0.42, "hair": 0.48, "background": 0.48}
_GRAMMAR = Path(__file__).parent / "grammar"
_FORMS = re.compile(r"(\w+)/(\w+)/(\w+)")
_UNIT = re.compile(r"[\u4e00-\u9fff]|[^\W\u4e00-\u9fff]+|[^\w\s]")
_SIDES = {"left": "right", "right": "left", "左": "右", "右": "左"}
_SIDE = re.compile(
    r"左右|右左|左|右|\bright (?:now|away|here|there|behind)\b|\b(?:left|right)(?=(?:wards?)?\b)", re.IGNORECASE
)


@dataclass(frozen=True)
class Caption:
    """A sentence and what it names: `slots` maps slots of `vocabulary.SLOTS` to values; the rest is unsaid."""

    text: str
    language: str
    slots: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        return {"text": self.text, "language": self.language, "slots": dict(self.slots)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Caption:
        return cls(data["text"], data["language"], dict(data["slots"]))

    @property
    def composes(self) -> bool:
        """Whether it names a pair of `HELD_OUT_PAIRS`."""
        return any((self.slots.get("action"), slot, value) in HELD_OUT_PAIRS for slot, value in self.slots.items())


@functools.cache
def grammar(language: str) -> Mapping[str, Any]:
    """The parsed grammar of a language, ``en`` or ``zh``. Read only."""
    parsed: Mapping[str, Any] = json.loads((_GRAMMAR / f"{language}.json").read_text(encoding="utf-8"))
    return parsed


def sample(rng: Random, split: str = "train", language: str | None = None, action: str | None = None) -> Caption:
    """Draw one caption of a split; language and action are drawn too unless they are given."""
    if split not in SPLITS or (language or "en") not in LANGUAGES:
        raise ValueError(f"no captions of split {split!r}, language {language!r}: take of {SPLITS} and {LANGUAGES}")
    drawn = language or _choice(rng, LANGUAGES)
    while True:
        composing = split == "heldout" and rng.random() < 0.5
        slots = _slots(rng, action or _choice(rng, ACTIONS), composing, 0.8 if split == "heldout" else 0.6)
        writer = _WRITERS[drawn](rng, split, novel=split == "heldout" and (not composing or rng.random() < 0.4))
        text = _finish(rng, writer.write(slots), drawn)
        if len(_UNIT.findall(text)) <= MAX_UNITS:
            return Caption(text, drawn, slots)


def heldout_set(n: int, seed: int) -> tuple[Caption, ...]:
    """`n` different held-out captions, the same for a seed: half Chinese, actions in turn."""
    return unique_captions(n, seed, "heldout")


def unique_captions(n: int, seed: int, split: str, language: str | None = None) -> tuple[Caption, ...]:
    """`n` captions of different wording, the same for a seed, languages (unless one is given) and actions in turn."""
    rng, seen, found = Random(seed), set(), []
    while len(found) < n:
        turn = len(found)
        caption = sample(rng, split, language or LANGUAGES[turn % 2], ACTIONS[turn // len(LANGUAGES) % len(ACTIONS)])
        if caption.text.casefold() not in seen:
            seen.add(caption.text.casefold())
            found.append(caption)
    return tuple(found)


def load_heldout(path: Path) -> tuple[Caption, ...]:
    """Read the captions of a `heldout.jsonl` that `caption_sets` wrote."""
    return tuple(Caption.from_json(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines())


def mirror_caption(text: str) -> str:
    """The caption of the mirrored motion: left and right, 左 and 右 change places; "right now" and 左右 stay."""

    def swap(match: re.Match[str]) -> str:
        side = match.group()
        other = _SIDES.get(side.lower(), side)
        if side.isupper():
            return other.upper()
        return other.capitalize() if side[0].isupper() else other

    return _SIDE.sub(swap, text)


def described_captions(index: Path) -> tuple[Caption, ...]:
    """CMU's own descriptions of the training clips in the motion data's `index.csv`, and their mirror images."""
    with index.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train" and row["action"] in ACTIONS]
    texts = {
        (side, row["action"])
        for row in rows
        if row["cmu_description"]
        for side in (row["cmu_description"], mirror_caption(row["cmu_description"]))
    }
    return tuple(Caption(text, "en", {"action": action}) for text, action in sorted(texts))


def characters(language: str = "zh") -> tuple[str, ...]:
    """Every Chinese character and full-width mark that the grammar can write, sorted."""
    marks = "，。、！" if language == "zh" else ""
    return tuple(
        sorted(
            {c for text in _strings(grammar(language)) for c in text if ord(c) > 0x2E7F}
            | set(marks)
            | ({"他", "她", "和", "配", "前", "的", "左", "右"} if language == "zh" else set())
        )
    )


def phrasings(language: str, action: str, split: str) -> tuple[str, ...]:
    """The different phrasings of an action in a split; English ones in their -ing form."""
    found = dict.fromkeys(grammar(language)["actions"][action][split])
    return tuple(_FORMS.sub(r"\1", phrase).replace("_", " ") for phrase in found)


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    else:
        for child in node.values() if isinstance(node, dict) else node:
            yield from _strings(child)


def _choice(rng: Random, values: Sequence[Any]) -> Any:
    return values[int(rng.random() * len(values))]


def _slots(rng: Random, action: str, composing: bool, clothes: float) -> dict[str, str]:
    """What a caption names: the action, and looks; a held-out pair where `composing`, and none otherwise."""
    plain = rng.random() < 0.15
    drawn = {slot: _choice(rng, SLOTS[slot]) for slot in SLOTS if slot != "action"}
    keep = {slot: not plain and rng.random() < share for slot, share in _NAMED_SHARE.items()}
    for slot in ("shirt", "trousers"):
        keep[slot] = not plain and rng.random() < clothes
        drawn[slot] = _choice(rng, [v for v in SLOTS[slot] if (action, slot, v) not in HELD_OUT_PAIRS])
    if composing:
        slot = _choice(rng, ("shirt", "trousers"))
        drawn[slot] = _choice(rng, [v for v in SLOTS[slot] if (action, slot, v) in HELD_OUT_PAIRS])
        keep[slot] = True
    return {"action": action} | {slot: drawn[slot] for slot in drawn if keep[slot]}


def _finish(rng: Random, text: str, language: str) -> str:
    """The small differences of typing: case, a final mark, rarely two letters of a long word exchanged."""
    if language == "zh":
        return text + _choice(rng, ("", "", "。", "。", "！"))
    if rng.random() < 0.03:
        long_words = [m for m in re.finditer(r"[a-z]{7,}", text)]
        if long_words:
            word = _choice(rng, long_words)
            at = word.start() + 2 + int(rng.random() * (len(word.group()) - 4))
            text = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    style = rng.random()
    text = text.upper() if style < 0.03 else text[0].upper() + text[1:] if style < 0.6 else text
    return text + _choice(rng, ("", "", ".", ".", "!"))


class _Writer(ABC):
    """What both languages share: drawing words of the right split from the grammar."""

    language = ""

    def __init__(self, rng: Random, split: str, novel: bool) -> None:
        self.rng, self.split, self.novel, self.words = rng, split, novel, grammar(self.language)

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def pick(self, node: Any) -> Any:
        """One of a list; of lists by split, a held-out one now and then where the caption is held out."""
        if isinstance(node, list):
            return _choice(self.rng, node)
        return _choice(self.rng, node["heldout" if self.split == "heldout" and self.chance(0.4) else "train"])

    def colour(self, node: Mapping[str, Any], value: str) -> str:
        return str(self.pick(node[value]))

    def action(self, action: str) -> str:
        split = self.split if self.novel or self.split != "heldout" else "train"
        return str(_choice(self.rng, self.words["actions"][action][split]))

    def template(self, kind: str) -> str:
        if self.split == "train" or self.chance(0.7):
            return str(_choice(self.rng, self.words[kind][self.split]))
        # A label is a training phrasing of the action, and so would not be new.
        return str(_choice(self.rng, [t for t in self.words[kind]["train"] if "{label}" not in t]))

    def bare(self, slots: Mapping[str, str]) -> bool:
        return not {"build", "skin", "hair"} & set(slots) and self.chance(0.35)

    def garments(self, slots: Mapping[str, str]) -> list[str]:
        """The named clothes, in either order."""
        worn = [self.garment(slot, slots[slot]) for slot in ("shirt", "trousers") if slot in slots]
        return worn[::-1] if self.chance(0.25) else worn

    @abstractmethod
    def garment(self, slot: str, value: str) -> str: ...


class _English(_Writer):
    language = "en"

    def write(self, slots: Mapping[str, str]) -> str:
        clothes, after = " and ".join(self.garments(slots)), ""
        more: list[str] = []
        bare = self.bare(slots)
        place = 0.6 if bare else self.rng.random()
        inline = ""
        if clothes and place < 0.5:
            inline = f" {self.pick(self.words['wear'])} {clothes}"
        elif clothes and place < 0.75:
            after = f"{self.pick(['', ','])} {self.pick(['in', 'wearing', 'dressed in', 'with'])} {clothes}"
        elif clothes:
            more.append(self.pick(self.words["wear_sentence"]).replace("{outfit}", clothes))
        who = "" if bare else self.who(slots, inline, more)
        front = ""
        if "background" in slots:
            words = self.words["background"]
            colour = self.colour(words["words"], slots["background"])
            if self.chance(0.25):
                more.append(self.pick(words["sentence"]).format(c=colour))
            elif self.chance(0.2):
                front = _articles(self.pick(words["clause"]).format(c=colour)) + ", "
            else:
                after += " " + self.pick(words["clause"]).format(c=colour)
        sentence = self.clause("bare" if bare else "templates", slots["action"]).replace("{who}", who)
        sentence = front + _articles(sentence + after)
        if more:
            mark = self.pick([". ", ". ", ", "])
            more = [_articles(_pronouns(part, slots.get("build"))) for part in more]
            sentence = mark.join([sentence] + [m[0].upper() + m[1:] if mark == ". " else m for m in more])
        return sentence

    def clause(self, kind: str, action: str) -> str:
        template, phrase = self.template(kind), self.action(action)
        forms = {"ing": r"\1", "s": r"\2", "base": r"\3"}
        for form, group in forms.items():
            template = template.replace("{" + form + "}", _FORMS.sub(group, phrase).replace("_", " "))
        return template.replace("{label}", self.pick(self.words["labels"][action]))

    def garment(self, slot: str, value: str) -> str:
        words = self.words[slot]
        if value in words.get("bare", {}) and self.chance(0.3):
            return str(self.pick(words["bare"][value]))
        text = f"{self.colour(words['colours'], value)} {self.pick(words['garments'])}"
        if slot == "shirt":
            return f"a {text}"
        return f"a pair of {text}" if self.chance(0.08) else text

    def who(self, slots: Mapping[str, str], outfit: str, more: list[str]) -> str:
        noun = str(self.pick(self.words["build"][slots.get("build", "")]))
        pronoun_like = noun in ("someone", "somebody")
        before, having = [], []
        for slot in ("skin", "hair") if self.chance(0.5) else ("hair", "skin"):
            if slot not in slots:
                continue
            words, place = self.words[slot], self.rng.random()
            colour = self.colour(words["words"], slots[slot])
            if place < 0.35 and not pronoun_like:
                whole = words["alone"][slots[slot]] if self.chance(0.4) else words["before"]
                before.append(self.pick(whole).format(c=colour))
            elif place < 0.75:
                having.append(self.pick(words["with"]).format(c=colour))
            else:
                more.append(self.pick(words["sentence"]).replace("{c}", colour))
        article = "" if pronoun_like else self.pick(["a ", "a ", "a ", "the ", "one ", ""])
        traits = " with " + " and ".join(having) if having else ""
        tail = outfit + traits if self.chance(0.5) else traits + outfit
        return f"{article}{' '.join(before + [noun])}{tail}"


class _Chinese(_Writer):
    language = "zh"

    def write(self, slots: Mapping[str, str]) -> str:
        bare = self.bare(slots)
        before: list[str] = []
        later: list[str] = []
        for clause in self.clauses(slots):
            (later if bare or self.chance(0.4) else before).append(clause)
        template, action = self.template("bare" if bare else "templates"), self.action(slots["action"])
        front = ""
        if "background" in slots:
            words = self.words["background"]
            colour, place = self.colour(words["words"], slots["background"]), self.rng.random()
            if place < 0.55:
                later.append(self.pick(words["clause"]).format(c=colour))
            elif place < 0.75 and "在{act}" not in template and not action.startswith("在"):
                action = self.pick(words["place"]).format(c=colour) + action
            else:
                front = self.pick(words["place"]).format(c=colour) + self.pick(["，", ""])
        main = template.replace("{who}", self.who(slots, before)).replace("{act}", action)
        main = main.replace("在在", "在").replace("有有", "有")
        if not later:
            return front + main
        pronoun = {"man": "他", "woman": "她"}.get(slots.get("build", ""), "") if self.chance(0.4) else ""
        mark = "，" if self.chance(0.85) else "。"
        return front + main + mark + ("" if "背景" in later[0] else pronoun) + "，".join(later)

    def clauses(self, slots: Mapping[str, str]) -> list[str]:
        """What is said of clothes, skin and hair, a clause each, in any order."""
        worn = self.garments(slots)
        found = [self.pick(self.words["wear"]) + self.pick(["和", "和", "、", "配"]).join(worn)] if worn else []
        for slot in ("skin", "hair"):
            if slot in slots:
                words = self.words[slot]
                colour = self.colour(words["words"], slots[slot])
                clause = words["alone"][slots[slot]] if self.chance(0.3) else words["clause"]
                found.append(self.pick(clause).format(c=colour))
        return sorted(found, key=lambda _: self.rng.random())

    def garment(self, slot: str, value: str) -> str:
        words = self.words[slot]
        if value in words.get("bare", {}) and self.chance(0.3):
            return str(self.pick(words["bare"][value]))
        return f"{self.colour(words['colours'], value)}{self.pick(['', '', '的'])}{self.pick(words['garments'])}"

    def who(self, slots: Mapping[str, str], before: list[str]) -> str:
        noun, joined = self.pick(self.words["build"][slots.get("build", "")]), self.pick(["、", "，", ""]).join(before)
        counter = self.pick(self.words["counters"])
        return f"{counter}{joined.rstrip('的') + '的' if joined else ''}{noun}"


_WRITERS: dict[str, Any] = {"en": _English, "zh": _Chinese}


def _articles(text: str) -> str:
    """Correct ``a`` before a vowel: "an orange shirt"."""
    return re.sub(r"\ba(?= [aeio])", "an", text)


def _pronouns(text: str, build: str | None) -> str:
    pronoun, possessive = {"man": ("he", "his"), "woman": ("she", "her")}.get(build or "", ("they", "their"))
    plural = pronoun == "they"
    forms = {
        "pron": pronoun,
        "poss": possessive,
        "has": "have" if plural else "has",
        "is": "are" if plural else "is",
        "wears": "wear" if plural else "wears",
    }
    for name, form in forms.items():
        text = text.replace("{" + name + "}", form)
    return text
