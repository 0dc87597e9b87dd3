"""Speech recognition on the device with sherpa-onnx (the extra ``[asr]``): sound in, caption events out.

    speech = SpeechCaptions(open_recognizer("sherpa-onnx-streaming-zipformer-bilingual-zh-en-2023-02-20"))
    for event in listen(sys.stdin.buffer, speech):   # arecord -t raw -f S16_LE -r 16000 -c 1 | python app.py
        text = merger.accept(event)

The user chooses and downloads a model: a streaming ("online") transducer or paraformer for English, Chinese or both.
They are listed at https://k2-fsa.github.io/sherpa/onnx/pretrained_models/index.html
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Optional, Protocol, Union

import numpy as np
import numpy.typing as npt

from t2v_edge.captions.merger import MAX_EVENT_CHARACTERS, CaptionEvent
from t2v_edge.errors import EngineError, UsageError

SAMPLE_RATE = 16_000
_PIECE_S = 0.1  # the sound between two reads of the result
_TAIL_S = 0.5  # silence at the end, for the model's look-ahead
# sherpa-onnx ends the process if an encoder's metadata lack one of these, so they are looked for first.
_STREAMING = {"transducer": (b"decode_chunk_len", b"chunk_shift"), "paraformer": (b"decoder_num_blocks",)}
_MODELS = "https://k2-fsa.github.io/sherpa/onnx/pretrained_models/index.html"

Samples = npt.NDArray[np.float32]


class Recognizer(Protocol):
    """The part of `sherpa_onnx.OnlineRecognizer` in use.

    A stream has `accept_waveform(rate, samples)` and `input_finished()`.
    """

    def create_stream(self) -> Any: ...

    def is_ready(self, s: Any) -> bool: ...

    def decode_stream(self, s: Any) -> None: ...

    def get_result(self, s: Any) -> str: ...

    def is_endpoint(self, s: Any) -> bool: ...

    def reset(self, s: Any) -> Any: ...


class PcmFile(Protocol):
    """A source of sound, such as `sys.stdin.buffer`."""

    def read1(self, size: int, /) -> bytes: ...


class SpeechCaptions:
    """A converter of sound to caption events. A segment lies between two pauses (endpoints of the recogniser).

    The events' `start_s` is where the segment begins, and `end_s` how much was heard, in seconds of sound since the
    beginning. `received_s` is `clock`'s. Text all in capitals, as some models write, becomes lower case. Use it from
    one thread.

    sample_rate: of the sound, 8,000 to 192,000. The recogniser resamples.
    stream: the events' stream.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        sample_rate: int = SAMPLE_RATE,
        stream: str = "speech",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 8_000 <= sample_rate <= 192_000:
            raise UsageError(f"sample_rate is {sample_rate}, expected 8000 to 192000 samples a second")
        self._recognizer = recognizer
        self.sample_rate = sample_rate
        self._name = stream
        self._clock = clock
        self._sound: Optional[Any] = recognizer.create_stream()
        self._heard = 0
        self._begun = 0
        self._segment = 0
        self._revision = 0
        self._text = ""

    def accept(self, samples: Samples) -> list[CaptionEvent]:
        """Take samples, float32 (n,), -1 to 1. Returns their events.

        Raises `UsageError` for other samples, and after `finish`.
        """
        if not isinstance(samples, np.ndarray) or samples.dtype != np.float32 or samples.ndim != 1:
            raise UsageError("samples must be a float32 array of one dimension, from -1 to 1; mix channels down first")
        if not np.isfinite(samples).all():
            raise UsageError("samples hold NaN or infinity; check where the sound comes from")
        if self._sound is None:
            raise UsageError("the sound has been finished; make another SpeechCaptions")
        # Endpoints are looked for only between pieces, so a long array is cut into pieces.
        piece = int(_PIECE_S * self.sample_rate)
        events: list[CaptionEvent] = []
        for start in range(0, len(samples), piece):
            part = samples[start : start + piece]
            self._heard += len(part)
            self._sound.accept_waveform(self.sample_rate, part)
            events += self._decode(self._sound, ended=False)
        return events

    def finish(self) -> list[CaptionEvent]:
        """End the sound. Returns the last events, and nothing the second time."""
        sound, self._sound = self._sound, None
        if sound is None:
            return []
        sound.accept_waveform(self.sample_rate, np.zeros(int(_TAIL_S * self.sample_rate), np.float32))
        sound.input_finished()
        return self._decode(sound, ended=True)

    def _decode(self, sound: Any, ended: bool) -> list[CaptionEvent]:
        while self._recognizer.is_ready(sound):
            self._recognizer.decode_stream(sound)
        text = self._recognizer.get_result(sound).strip()[:MAX_EVENT_CHARACTERS]
        text = text.lower() if text.isupper() else text
        if not ended and not self._recognizer.is_endpoint(sound):
            return self._partial(text)
        events = self._final(text)
        if not ended:
            self._recognizer.reset(sound)
        return events

    def _partial(self, text: str) -> list[CaptionEvent]:
        if text == self._text:
            return []
        event = self._event(text, final=False)
        self._text = text
        self._revision += 1
        return [event]

    def _final(self, text: str) -> list[CaptionEvent]:
        """End the segment. A pause without a word before it has no event."""
        events = [self._event(text, final=True)] if text or self._revision else []
        self._segment += len(events)
        self._revision, self._text, self._begun = 0, "", self._heard
        return events

    def _event(self, text: str, final: bool) -> CaptionEvent:
        start_s, end_s = self._begun / self.sample_rate, self._heard / self.sample_rate
        return CaptionEvent(self._name, self._segment, self._revision, text, final, start_s, end_s, self._clock())


def listen(file: PcmFile, speech: SpeechCaptions) -> Iterator[CaptionEvent]:
    """Events from raw sound as it comes, until the file ends. Then it finishes `speech`.

    The sound is 16-bit signed little-endian samples of one channel at `speech.sample_rate`.
    """
    rest = b""
    while True:
        data = file.read1(2 * int(_PIECE_S * speech.sample_rate))
        if not data:
            break
        data = rest + data
        whole = len(data) // 2 * 2
        data, rest = data[:whole], data[whole:]
        yield from speech.accept(np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768))
    yield from speech.finish()


def open_recognizer(folder: Union[str, os.PathLike[str]], threads: int = 1) -> Recognizer:
    """A streaming recogniser of the model in `folder`, on the CPU, with endpoint detection.

    The folder holds the files of a sherpa-onnx model: ``tokens.txt``, ``encoder*.onnx``, ``decoder*.onnx`` and, for a
    transducer, ``joiner*.onnx``. If there are two precisions, ``.int8.onnx`` is used. Raises `EngineError` if
    sherpa-onnx is not installed or the model cannot be used, `UsageError` for fewer threads than one.
    """
    if threads < 1:
        raise UsageError(f"threads is {threads}, expected 1 or more")
    folder = Path(folder)
    tokens = folder / "tokens.txt"
    if not tokens.is_file():
        raise EngineError(f"{folder} is not a sherpa-onnx model: it has no tokens.txt; take one of {_MODELS}")
    files = {"tokens": str(tokens), "encoder": _find(folder, "encoder"), "decoder": _find(folder, "decoder")}
    kind = "transducer" if any(folder.glob("joiner*.onnx")) else "paraformer"
    if not _mentions(Path(files["encoder"]), _STREAMING[kind]):
        raise EngineError(f"the encoder in {folder} is not a streaming {kind}; take one of {_MODELS}")
    try:
        import sherpa_onnx
    except ImportError as error:
        raise EngineError(f"speech recognition needs sherpa-onnx ({error}); pip install 't2v-edge[asr]'") from error
    options = {"num_threads": threads, "sample_rate": SAMPLE_RATE, "enable_endpoint_detection": True}
    try:
        if kind == "transducer":
            files["joiner"] = _find(folder, "joiner")
            recognizer = sherpa_onnx.OnlineRecognizer.from_transducer(**files, **options)
        else:
            recognizer = sherpa_onnx.OnlineRecognizer.from_paraformer(**files, **options)
    except Exception as error:  # its C++ code raises no class of its own
        raise EngineError(
            f"the model in {folder} cannot be loaded ({error}); take a streaming one, see {_MODELS}"
        ) from error
    found: Recognizer = recognizer
    return found


def _mentions(file: Path, names: tuple[bytes, ...]) -> bool:
    """Whether the file contains one of the names."""
    if file.stat().st_size == 0:
        return False
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(name) >= 0 for name in names)


def _find(folder: Path, part: str) -> str:
    """The file of a model's part."""
    files = sorted(folder.glob(f"{part}*.onnx"))
    small = [file for file in files if file.name.endswith(".int8.onnx")]
    chosen = small or files
    if len(chosen) != 1:
        names = ", ".join(file.name for file in chosen[:4]) or "none"
        raise EngineError(f"{folder} should hold one {part}*.onnx, and holds {names}; unpack it again, or keep one")
    return str(chosen[0])
