"""The trainer of the text stage: the student gives a caption the condition that the teacher gives it."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from t2v_edge.bundle.tokenizer import CaptionTokenizer
from t2v_export.compress.distill.training import StageTrainer, autocast, generators
from t2v_export.compress.near import replaced
from t2v_export.recipe import Distill

VARIATIONS = 12
"""Variations of each caption, from which the student also learns where the teacher is unsure."""

DROPPED, REPLACED, EXCHANGED = 0.2, 0.2, 0.3
HELD_OUT = 0.05
_WORD = re.compile(r"[㐀-鿿豈-﫿]|[^\s㐀-鿿豈-﫿]+\s*")


@dataclass(frozen=True)
class CaptionBank:
    """Captions as the student reads them, `ids`, `mask` int64 (n, tokens), and the teacher's `condition` (n, C)."""

    ids: Tensor
    mask: Tensor
    condition: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.ids[index], self.mask[index], self.condition[index]


class Neighbours:
    """The words, or Chinese characters, that captions have before and after each word."""

    def __init__(self, captions: Sequence[str]) -> None:
        before: dict[str, set[str]] = {}
        after: dict[str, set[str]] = {}
        for caption in captions:
            words = _WORD.findall(caption)
            for one, two in zip(words, words[1:]):
                after.setdefault(one, set()).add(two)
                before.setdefault(two, set()).add(one)
        self._before, self._after = ({w: sorted(s) for w, s in d.items()} for d in (before, after))

    def exchange(self, words: list[str], share: float, chooser: random.Random) -> list[str]:
        """The words, about a `share` of them exchanged for others that some caption has next to the same neighbour."""
        made = list(words)
        for i in range(len(made)):
            if chooser.random() < share:
                left = chooser.random() < 0.5
                place = i - 1 if left else i + 1
                if 0 <= place < len(made):
                    options = (self._after if left else self._before).get(made[place])
                    made[i] = chooser.choice(options) if options else made[i]
        return made


def vary(
    caption: str, chooser: random.Random, near: Mapping[str, Sequence[str]] = {}, neighbours: Neighbours | None = None
) -> str:
    """A variation of a caption: some words, or Chinese characters, are left out or replaced.

    A word is replaced by a `near` one, or exchanged for one that stood next to the same of its `neighbours`. How many
    words change is random, from none to twice the usual share.
    """
    words = replaced(_WORD.findall(caption), near, REPLACED, chooser)
    if neighbours is not None:
        words = neighbours.exchange(words, EXCHANGED * chooser.random() ** 2, chooser)
    dropped = DROPPED * chooser.random()
    kept = [word for word in words if chooser.random() > dropped]
    return "".join(kept or words)


@torch.no_grad()
def conditions(module: nn.Module, tokenizer: CaptionTokenizer, captions: Sequence[str], device: torch.device) -> Tensor:
    """What a text module makes of captions, (n, C) float32 on `device`."""
    ids, mask = tokens(tokenizer, captions)
    made = [_condition(module, i.to(device), m.to(device)) for i, m in zip(ids.split(256), mask.split(256))]
    return torch.cat(made).float()


def _condition(module: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    made = module(ids, mask)
    condition: Tensor = made[0] if isinstance(made, tuple) else made
    return condition


def tokens(tokenizer: CaptionTokenizer, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token ids and mask, int64 (n, tokens). Raises `CaptionError` for a caption that cannot be tokenized."""
    made = [tokenizer(caption) for caption in captions]
    ids, mask = (torch.from_numpy(np.concatenate([getattr(t, n) for t in made])) for n in ("ids", "mask"))
    return ids, mask


class TextTrainer(StageTrainer):
    """Divergence from the teacher's probabilities in each group; without groups the squared error."""

    name = "text"

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        tokenizers: tuple[CaptionTokenizer, CaptionTokenizer],
        captions: Sequence[str],
        options: Distill,
        seed: int,
        device: torch.device,
        near: Mapping[str, Sequence[str]] = {},
    ) -> None:
        """`tokenizers`: the teacher's and the student's. `near`: by word, others that may replace it."""
        self.student, self.rate, self.batch, self.device = student, options.text_rate, options.text_batch, device
        self.precision = options.precision
        chooser = random.Random(seed)
        held = max(1, int(HELD_OUT * len(captions)))
        order = chooser.sample(list(captions), len(captions))
        trained = order[held:] or order
        neighbours = Neighbours(trained)
        trained = [*trained, *(vary(c, chooser, near, neighbours) for _ in range(VARIATIONS) for c in trained)]
        reader, writer = tokenizers
        self.bank, self.held = (
            CaptionBank(ids.to(device), mask.to(device), conditions(teacher, reader, some, device))
            for some in (trained, order[:held])
            for ids, mask in (tokens(writer, some),)
        )
        self.groups = getattr(getattr(student, "head", None), "groups", None)
        self.scale = self.bank.condition.std(0).clamp(min=1e-3)
        self.generator = generators(device, seed)
        self.optimizer = torch.optim.AdamW(student.parameters(), lr=self.rate, betas=(0.9, 0.98), weight_decay=0.01)

    def step(self, progress: float) -> Mapping[str, Tensor]:
        index = torch.randint(len(self.bank), (self.batch,), generator=self.generator, device=self.device)
        ids, mask, condition = self.bank.rows(index)
        with autocast(self.device, self.precision):
            loss = self.loss(self.student, ids, mask, condition)
        self.descend(loss)
        return {"loss": loss.detach()}

    def loss(self, student: nn.Module, ids: Tensor, mask: Tensor, condition: Tensor) -> Tensor:
        """Nats a group, or mean squared error in units of each number's spread."""
        if self.groups is None:
            error = (_condition(student, ids, mask).float() - condition) / self.scale
            return error.square().mean()
        logits: Callable[..., Tensor] = student.logits  # type: ignore[assignment]
        divergence = [
            functional.kl_div(part.float().log_softmax(1), wanted, reduction="batchmean")
            for part, wanted in zip(logits(ids, mask).split(self.groups, 1), condition.split(self.groups, 1))
        ]
        return torch.stack(divergence).mean()

    @torch.no_grad()
    def measure(self, student: nn.Module) -> Mapping[str, float]:
        """On held-out captions: `held_loss`, and `error`, the mean largest difference of a number of the condition."""
        ids, mask, condition = self.held.rows(torch.arange(len(self.held), device=self.device))
        made = _condition(student, ids, mask)
        return {
            "held_loss": float(self.loss(student, ids, mask, condition)),
            "error": float((made - condition).abs().amax(1).mean()),
        }
