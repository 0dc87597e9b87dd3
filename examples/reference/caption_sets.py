"""Write the caption sets that are committed in `calibration/captions`.

    python -m examples.reference.caption_sets --out calibration/captions

`en.txt` and `zh.txt` hold captions of the training grammar, for calibration. `corpus.txt` holds more of them, to teach
students. `heldout.jsonl` holds the held-out captions with what they name, to judge models.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from examples.reference.captions import HELD_OUT_COUNT, HELD_OUT_SEED, LANGUAGES, heldout_set, unique_captions

CALIBRATION_COUNT, CALIBRATION_SEED = 256, 7
CORPUS_COUNT, CORPUS_SEED = 8000, 11


def committed_sets() -> dict[str, str]:
    """File name to text of every caption set in `calibration/captions`."""
    sets = {}
    for language in LANGUAGES:
        captions = unique_captions(CALIBRATION_COUNT, CALIBRATION_SEED, "train", language)
        sets[f"{language}.txt"] = "".join(caption.text + "\n" for caption in captions)
    corpus = unique_captions(CORPUS_COUNT, CORPUS_SEED, "train")
    sets["corpus.txt"] = "".join(caption.text + "\n" for caption in corpus)
    held = heldout_set(HELD_OUT_COUNT, HELD_OUT_SEED)
    sets["heldout.jsonl"] = "".join(json.dumps(c.to_json(), ensure_ascii=False) + "\n" for c in held)
    return sets


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the committed caption sets.")
    parser.add_argument("--out", type=Path, required=True, help="folder for them")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, text in committed_sets().items():
        part = out / f".{name}.part"
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(out / name)


if __name__ == "__main__":
    main()
