"""Train the text stage: captions to the condition, a probability for every value of every slot.

    python -m examples.reference.train_text --encoder ENCODER --data MOTIONS --out OUT --steps 600 --device auto

A slot that a caption names is learned by cross-entropy. A slot that it does not name is learned by the divergence from
the uniform distribution, since content noise picks its value at run time.

`OUT/encoder/` then holds the fine-tuned encoder and `head.safetensors` (float16), as the checkpoint wants them. The
best weights are those of the least loss on the grammar's ``validation`` captions. Held-out captions are only measured.
The log is `OUT/text_log.jsonl`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from examples.reference.captions import (
    HELD_OUT_COUNT,
    HELD_OUT_SEED,
    LANGUAGES,
    Caption,
    described_captions,
    heldout_set,
    sample,
    unique_captions,
)
from examples.reference.make_encoder import write_encoder
from examples.reference.model import TOKENS, text_options
from examples.reference.training import TrainingLog, load_state, save_state, seed_everything
from examples.reference.vocabulary import CONDITION_SIZE, SLOTS, slot_slices
from t2v_export.models.text import TransformersText

UNNAMED = -1
DESCRIBED_SHARE = 0.01
UNKNOWN_SHARE = 0.04
UNNAMED_WEIGHT = 2.0


@dataclass(frozen=True)
class Options:
    """The settings of a run; lengths in steps, learning rates at their peak."""

    steps: int = 600
    batch: int = 256
    bank: int = 60_000
    judged: int = HELD_OUT_COUNT
    encoder_rate: float = 1e-4
    embedding_rate: float = 3e-4
    head_rate: float = 2e-3
    warm_up: int = 50
    evaluate_every: int = 50
    checkpoint_every: int = 100
    patience: int = 8
    seed: int = 0


@dataclass(frozen=True)
class Bank:
    """Tokenized captions: ids and mask (n, 48), values (n, 7) or `UNNAMED`; all on the CPU."""

    ids: Tensor
    mask: Tensor
    values: Tensor
    languages: tuple[str, ...]

    def rows(self, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """These captions on a device, cut to the longest of them (a multiple of eight tokens)."""
        longest = int(self.mask[index].sum(1).max())
        end = min(-(-longest // 8) * 8, TOKENS)
        parts = (self.ids[index, :end], self.mask[index, :end], self.values[index])
        ids, mask, values = (part.to(device, non_blocking=True) for part in parts)
        return ids, mask, values


def tokenize(tokenizer: Tokenizer, captions: Sequence[Caption]) -> Bank:
    """Tokenize captions, padded to `TOKENS`; raises `ValueError` for one that does not fit."""
    encoded = tokenizer.encode_batch([caption.text for caption in captions])
    ids = torch.zeros(len(captions), TOKENS, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, (caption, tokens) in enumerate(zip(captions, encoded, strict=True)):
        if len(tokens.ids) > TOKENS:
            raise ValueError(f"{caption.text!r} has {len(tokens.ids)} tokens, at most {TOKENS} fit")
        ids[row, : len(tokens.ids)] = torch.tensor(tokens.ids)
        mask[row, : len(tokens.ids)] = 1
    values = [[SLOTS[slot].index(c.slots[slot]) if slot in c.slots else UNNAMED for slot in SLOTS] for c in captions]
    return Bank(ids, mask, torch.tensor(values), tuple(c.language for c in captions))


def slot_losses(logits: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean loss over named slots (cross-entropy) and over unnamed ones (divergence of the uniform from it).

    `logits` (n, condition), `values` (n, slots). Nats; both are 0 where there is nothing to average.
    """
    named, unnamed, count = logits.new_zeros(()), logits.new_zeros(()), logits.new_zeros(())
    for column, part in enumerate(slot_slices().values()):
        log_p, value = logits[:, part].log_softmax(1), values[:, column]
        is_named = value != UNNAMED
        named = named - (log_p.gather(1, value.clamp(min=0)[:, None])[:, 0] * is_named).sum()
        unnamed = unnamed - ((log_p.mean(1) + math.log(log_p.shape[1])) * ~is_named).sum()
        count = count + is_named.sum()
    return named / count.clamp(min=1), unnamed / (values.numel() - count).clamp(min=1)


@torch.no_grad()
def measure(model: TransformersText, bank: Bank, device: torch.device) -> dict[str, Any]:
    """How captions are read: accuracy of named slots, by language too, and how near to uniform the others are.

    ``sharp``: the share of named values whose probability is over 0.99. ``uneven``: the largest probability of an
    unnamed slot times its size, as mean and maximum. 1 is uniform. ``loss``: what training minimises.
    """
    model.eval()
    chunks = torch.arange(len(bank.ids)).split(512)
    logits = torch.cat([model.logits(*bank.rows(rows, device)[:2]).float().cpu() for rows in chunks])
    named_loss, unnamed_loss = slot_losses(logits, bank.values)
    is_named, right, likely, uneven = bank.values != UNNAMED, [], [], []
    for column, part in enumerate(slot_slices().values()):
        p, value = logits[:, part].softmax(1), bank.values[:, column]
        right.append(p.argmax(1) == value)
        likely.append(p.gather(1, value.clamp(min=0)[:, None])[:, 0])
        uneven.append(p.amax(1) * p.shape[1])
    rights, spread = torch.stack(right, 1), torch.stack(uneven, 1)[~is_named]
    whole = (rights | ~is_named).all(1)
    figures: dict[str, Any] = {
        "loss": float(named_loss + UNNAMED_WEIGHT * unnamed_loss),
        "all": float(whole.float().mean()),
        "sharp": float((torch.stack(likely, 1)[is_named] > 0.99).float().mean()),
        "uneven_mean": float(spread.mean()) if len(spread) else 1.0,
        "uneven_max": float(spread.max()) if len(spread) else 1.0,
        "uneven_over_1.3": float((spread > 1.3).float().mean()) if len(spread) else 0.0,
    }
    for column, slot in enumerate(SLOTS):
        figures[slot] = float(rights[is_named[:, column], column].float().mean())
    for language in LANGUAGES:
        rows = torch.tensor([spoken == language for spoken in bank.languages])
        figures[f"all_{language}"] = float(whole[rows].float().mean())
        figures[f"action_{language}"] = float(rights[rows, 0].float().mean())
    return {name: round(figure, 5) for name, figure in figures.items()}


def banks(encoder: Path, data: Path, options: Options) -> tuple[Bank, Bank, Bank, int]:
    """Training, validation and held-out captions, tokenized, and the id of the unknown token."""
    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    rng = Random(options.seed)
    described = described_captions(data / "index.csv")
    captions = [sample(rng) for _ in range(options.bank)]
    if described:
        captions += [described[i % len(described)] for i in range(round(DESCRIBED_SHARE * options.bank))]
    return (
        tokenize(tokenizer, captions),
        tokenize(tokenizer, unique_captions(options.judged, options.seed + 1, "validation")),
        tokenize(tokenizer, heldout_set(options.judged, HELD_OUT_SEED)),
        tokenizer.token_to_id("[UNK]"),
    )


def open_text(encoder: Path) -> TransformersText:
    """The reference text stage with the weights in an encoder folder; the head's too where they are there."""
    model = TransformersText(condition_size=CONDITION_SIZE, folder=encoder, **text_options())
    head = encoder / "head.safetensors"
    if head.exists():
        weights = {name: value.float() for name, value in load_file(head).items()}
        expected = {name for name in model.state_dict() if not name.startswith("encoder.")}
        if set(weights) != expected:
            raise ValueError(f"{head} holds {sorted(weights)}, expected {sorted(expected)}; train again")
        model.load_state_dict(weights, strict=False)
    return model


class Training:
    """A run that can be stopped and taken up again: model, optimizer, schedule and the best so far."""

    def __init__(self, model: TransformersText, options: Options, device: torch.device, unknown: int) -> None:
        self.options, self.device, self.unknown = options, device, unknown
        self.model = model.to(device)
        own = [p for name, p in model.named_parameters() if not name.startswith("encoder.")]
        # Words have a rate of their own: the Chinese characters that the encoder never saw have far to go.
        words = model.encoder.get_input_embeddings().weight
        body = [p for p in model.encoder.parameters() if p is not words]
        self.rates = (options.encoder_rate, options.embedding_rate, options.head_rate)
        groups = [{"params": body}, {"params": [words]}, {"params": own}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=0.01)
        self.step, self.seconds, self.best, self.waited = 0, 0.0, math.inf, 0

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "waited": self.waited,
            "options": vars(self.options),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up a kept state; raises `ValueError` where it was made with other options."""
        if state["options"] != vars(self.options):
            raise ValueError(f"the kept state was made with {state['options']}; give these, or leave out --resume")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.best, self.waited = (state[k] for k in ("step", "seconds", "best", "waited"))

    def rate(self) -> float:
        """The schedule's factor: linear warm-up, then a cosine down to a hundredth."""
        if self.step < self.options.warm_up:
            return (self.step + 1) / self.options.warm_up
        done = (self.step - self.options.warm_up) / max(self.options.steps - self.options.warm_up, 1)
        return 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * min(done, 1)))

    def advance(self, bank: Bank) -> tuple[Tensor, Tensor]:
        """One step on a random batch; the two losses, on the device. Randomness depends on seed and step alone."""
        torch.manual_seed(self.options.seed * 1_000_003 + self.step)
        for group, peak in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = peak * self.rate()
        index = torch.randint(len(bank.ids), (self.options.batch,))
        ids, mask, values = bank.rows(index, self.device)
        # Half of the captions lose a few words or characters, as if they had never been heard of.
        share = UNKNOWN_SHARE * (torch.rand(len(ids), 1, device=self.device) < 0.5)
        lost = (torch.rand(ids.shape, device=self.device) < share) & (mask > 0)
        lost[:, 0] = False
        ids = ids.masked_fill(lost, self.unknown)
        self.model.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            pooled = self.model.pooled(ids, mask)
        named, unnamed = slot_losses(self.model.head.logits(pooled.float()), values)
        self.optimizer.zero_grad(set_to_none=True)
        (named + UNNAMED_WEIGHT * unnamed).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return named.detach(), unnamed.detach()

    def save_encoder(self, source: Path, folder: Path) -> None:
        """Write the encoder folder as the checkpoint holds it, in float16."""
        weights = self.model.encoder.state_dict()
        weights = {name: value for name, value in weights.items() if value.is_floating_point()}
        head = {name: v for name, v in self.model.state_dict().items() if not name.startswith("encoder.")}
        read = {name: json.loads((source / name).read_text("utf-8")) for name in ("config.json", "tokenizer.json")}
        write_encoder(folder, read["config.json"], weights, read["tokenizer.json"], head)


def train(encoder: Path, data: Path, out: Path, options: Options, device: torch.device, resume: bool) -> dict[str, Any]:
    """Train, keep the best in `out/encoder`, and return what that folder, read again, does on held-out captions."""
    seed_everything(options.seed)
    learned, validation, heldout, unknown = banks(encoder, data, options)
    training = Training(open_text(encoder), options, device, unknown)
    log, kept = TrainingLog(out / "text_log.jsonl"), out / "text_state.pt"
    if resume and kept.exists():
        training.load(load_state(kept))
    elif log.path.exists():
        log.path.unlink()
    began = time.monotonic() - training.seconds
    with tqdm(total=options.steps, initial=training.step, desc="text", unit="step") as bar:
        while training.step < options.steps and training.waited < options.patience:
            named, unnamed = training.advance(learned)
            bar.update()
            training.seconds = time.monotonic() - began
            if training.step % options.evaluate_every == 0 or training.step == options.steps:
                judged = measure(training.model, validation, device)
                bar.set_postfix(loss=f"{judged['loss']:.4f}", all=f"{judged['all']:.3f}")
                log.write(
                    step=training.step,
                    seconds=training.seconds,
                    loss_named=float(named),
                    loss_unnamed=float(unnamed),
                    validation_loss=judged["loss"],
                    validation=judged,
                    heldout=measure(training.model, heldout, device),
                )
                training.waited += 1
                if judged["loss"] < training.best:
                    training.best, training.waited = judged["loss"], 0
                    training.save_encoder(encoder, out / "encoder")
            if training.step % options.checkpoint_every == 0 or training.step == options.steps:
                save_state(training.state(), kept)
    final = open_text(out / "encoder").to(device)
    figures = {"validation": measure(final, validation, device), "heldout": measure(final, heldout, device)}
    log.write(step=training.step, seconds=time.monotonic() - began, final=True, **figures)
    log.plot(out / "text_curves.png", ("loss_named", "loss_unnamed", "validation_loss"), "loss, nats")
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--encoder", type=Path, required=True, help="folder made by examples.reference.make_encoder")
    parser.add_argument("--data", type=Path, required=True, help="folder with index.csv (CMU's own descriptions)")
    parser.add_argument("--out", type=Path, required=True, help="folder for encoder/, log, curves and state")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/text_state.pt where it is there")
    for name, default in vars(Options()).items():
        words = name.replace("_", " ")
        parser.add_argument("--" + name.replace("_", "-"), type=type(default), default=default, help=words)
    given = vars(parser.parse_args(arguments))
    wanted = given["device"] if given["device"] != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    options = Options(**{name: given[name] for name in vars(Options())})
    train(given["encoder"], given["data"], given["out"], options, torch.device(wanted), given["resume"])


if __name__ == "__main__":
    main()
