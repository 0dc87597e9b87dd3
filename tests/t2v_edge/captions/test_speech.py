"""Speech: a recogniser that plays a recorded transcript, and sherpa-onnx itself where it is installed."""

from __future__ import annotations

import io
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from t2v_edge.captions.merger import CaptionMerger, MergeOptions
from t2v_edge.captions.speech import SAMPLE_RATE, SpeechCaptions, listen, open_recognizer
from t2v_edge.errors import EngineError, UsageError

# What was recognised by when, in seconds of sound since the last endpoint, and at which of these seconds one is seen.
SCRIPT = (
    (((0.0, ""), (0.25, "A"), (0.45, "A PERSON"), (0.9, "A PERSON IS RUNNING")), 1.5),
    (((0.0, ""),), 0.5),
    (((0.0, ""), (0.3, "一个"), (0.6, "一个人")), 1.0),
    (((0.0, ""), (0.2, "cut o")), 99.0),
)


class Recorded:
    """Stands for `sherpa_onnx.OnlineRecognizer` and its stream."""

    def __init__(self, script=SCRIPT):
        self.script = list(script)
        self.heard = 0
        self.undecoded = 0
        self.finished = False
        self.samples = []

    def create_stream(self):
        return self

    def accept_waveform(self, rate, samples):
        assert rate == SAMPLE_RATE and samples.dtype == np.float32
        self.undecoded += len(samples)
        self.samples.append(samples)

    def input_finished(self):
        self.finished = True

    def is_ready(self, stream):
        return self.undecoded > 0

    def decode_stream(self, stream):
        step = min(self.undecoded, 800)
        self.undecoded -= step
        self.heard += step

    def get_result(self, stream):
        texts, _ = self.script[0]
        if self.finished:
            return "cut off" if texts[-1][1] == "cut o" else texts[-1][1]
        return [text for at, text in texts if at * SAMPLE_RATE <= self.heard][-1]

    def is_endpoint(self, stream):
        return self.heard >= self.script[0][1] * SAMPLE_RATE

    def reset(self, stream):
        self.heard = 0
        self.script.pop(0)


def silence(seconds):
    return np.zeros(int(seconds * SAMPLE_RATE), np.float32)


def told(events):
    return [(e.segment, e.revision, e.text, e.final, e.start_s, e.end_s) for e in events]


EXPECTED = [
    (0, 0, "a", False, 0.0, 0.3),
    (0, 1, "a person", False, 0.0, 0.5),
    (0, 2, "a person is running", False, 0.0, 0.9),
    (0, 3, "a person is running", True, 0.0, 1.5),
    (1, 0, "一个", False, 2.0, 2.3),
    (1, 1, "一个人", False, 2.0, 2.6),
    (1, 2, "一个人", True, 2.0, 3.0),
    (2, 0, "cut o", False, 3.0, 3.2),
    (2, 1, "cut off", True, 3.0, 3.5),
]


@pytest.mark.parametrize("chunk", [0.1, 1.0, 3.5])
def test_a_transcript_becomes_the_same_events_however_long_the_chunks_are(chunk):
    speech = SpeechCaptions(Recorded(), clock=lambda: 7.0)
    sound, events = silence(3.5), []
    size = int(chunk * SAMPLE_RATE)
    for start in range(0, len(sound), size):
        events += speech.accept(sound[start : start + size])
    events += speech.finish()
    assert told(events) == EXPECTED
    assert {(e.stream, e.received_s) for e in events} == {("speech", 7.0)}
    assert speech.finish() == []


def test_sound_in_pieces_shorter_than_a_look_loses_no_text():
    speech = SpeechCaptions(Recorded(), clock=lambda: 0.0)
    events = [e for _ in range(350) for e in speech.accept(silence(0.01))] + speech.finish()
    assert [(e.segment, e.text, e.final) for e in events] == [(s, text, final) for s, _, text, final, _, _ in EXPECTED]


def test_speech_through_the_merger_encodes_once_for_each_change_of_meaning():
    merger = CaptionMerger(MergeOptions(hold_s=0))
    speech = SpeechCaptions(Recorded(), clock=iter(range(100)).__next__)
    events = speech.accept(silence(3.5)) + speech.finish()
    assert [text for text in map(merger.accept, events) if text] == [
        "a person",
        "a person is running",
        "一个人",
        "cut o",
        "cut off",
    ]


def test_raw_sound_is_listened_to_as_it_comes_and_an_odd_byte_waits_for_its_other_half():
    class Pipe(io.BytesIO):
        def read1(self, size=-1):
            return super().read1(min(size, 3200 if self.tell() != 3200 else 777))

    pcm = (np.sin(np.arange(int(3.5 * SAMPLE_RATE))) * 32767).astype("<i2").tobytes()
    recorded = Recorded()
    events = list(listen(Pipe(pcm + b"\x01"), SpeechCaptions(recorded, clock=lambda: 0.0)))
    heard = np.concatenate(recorded.samples)[: len(pcm) // 2]
    assert np.array_equal(np.round(heard * 32768), np.frombuffer(pcm, "<i2"))
    assert [(e.segment, e.text, e.final) for e in events] == [(s, text, final) for s, _, text, final, _, _ in EXPECTED]


def test_words_taken_back_before_a_pause_end_their_segment_empty():
    speech = SpeechCaptions(Recorded(((((0.0, "a"), (0.3, "")), 0.5), (((0.0, "b"),), 9.0))), clock=lambda: 0.0)
    events = speech.accept(silence(0.6))
    assert [(e.segment, e.revision, e.text, e.final) for e in events] == [
        (0, 0, "a", False),
        (0, 1, "", False),
        (0, 2, "", True),
        (1, 0, "b", False),
    ]


def test_a_recogniser_without_endpoints_may_talk_on():
    endless = Recorded(((((0.0, "walking " * 2000),), 99.0),))
    (event,) = SpeechCaptions(endless).accept(silence(0.1))
    assert len(event.text) <= 4096


@pytest.mark.parametrize(
    "samples",
    [
        [0.0],
        np.zeros(4),
        np.zeros((4, 2), np.float32),
        np.zeros(4, np.int16),
        np.full(4, np.nan, np.float32),
    ],
)
def test_samples_of_another_kind_are_refused(samples):
    with pytest.raises(UsageError, match="samples"):
        SpeechCaptions(Recorded()).accept(samples)


def test_nothing_is_heard_after_the_end():
    speech = SpeechCaptions(Recorded())
    speech.finish()
    with pytest.raises(UsageError, match="make another"):
        speech.accept(silence(0.1))


@pytest.mark.parametrize("rate", [0, 7_999, 192_001])
def test_a_sample_rate_out_of_range_is_refused(rate):
    with pytest.raises(UsageError, match="sample_rate"):
        SpeechCaptions(Recorded(), rate)


# ---- models


def write_files(folder, *names):
    for name in ("tokens.txt", *names):
        (folder / name).write_text("garbage decode_chunk_len decoder_num_blocks")


@pytest.mark.parametrize(
    "names, words",
    [
        (("encoder.onnx",), "one decoder\\*.onnx, and holds none"),
        (("encoder-1.onnx", "encoder-2.onnx", "decoder.onnx"), "holds encoder-1.onnx, encoder-2.onnx"),
    ],
)
def test_a_folder_that_is_no_model_is_named(tmp_path, names, words):
    with pytest.raises(EngineError, match="no tokens.txt"):
        open_recognizer(tmp_path)
    write_files(tmp_path, *names)
    with pytest.raises(EngineError, match=words):
        open_recognizer(tmp_path)
    with pytest.raises(UsageError, match="threads"):
        open_recognizer(tmp_path, 0)


@pytest.mark.parametrize("encoder", [b"", b"of another kind", None])
def test_a_model_that_does_not_stream_is_refused_before_sherpa_onnx_ends_the_process(tmp_path, monkeypatch, encoder):
    monkeypatch.setitem(sys.modules, "sherpa_onnx", None)
    if encoder is None:
        write_model(tmp_path)
        model = onnx.load(tmp_path / "encoder.onnx")
        del model.metadata_props[:]
        encoder = model.SerializeToString()
    else:
        write_files(tmp_path, "decoder.onnx", "joiner.onnx")
    (tmp_path / "encoder.onnx").write_bytes(encoder)
    with pytest.raises(EngineError, match="not a streaming transducer"):
        open_recognizer(tmp_path)
    (tmp_path / "joiner.onnx").unlink()
    with pytest.raises(EngineError, match="not a streaming paraformer"):
        open_recognizer(tmp_path)


def test_without_sherpa_onnx_it_says_what_to_install(tmp_path, monkeypatch):
    write_files(tmp_path, "encoder.onnx", "decoder.onnx", "joiner.onnx")
    monkeypatch.setitem(sys.modules, "sherpa_onnx", None)
    with pytest.raises(EngineError, match=r"pip install 't2v-edge\[asr\]'"):
        open_recognizer(tmp_path)


@pytest.mark.parametrize(
    "parts, maker", [(("encoder", "decoder", "joiner"), "from_transducer"), (("encoder", "decoder"), "from_paraformer")]
)
def test_a_model_is_opened_by_its_parts_and_int8_is_preferred(tmp_path, monkeypatch, parts, maker):
    class Sherpa:
        asked = {}

        class OnlineRecognizer:
            @staticmethod
            def from_transducer(**options):
                Sherpa.asked["from_transducer"] = options
                return "transducer"

            @staticmethod
            def from_paraformer(**options):
                Sherpa.asked["from_paraformer"] = options
                raise RuntimeError("Protobuf parsing failed")

    monkeypatch.setitem(sys.modules, "sherpa_onnx", Sherpa)
    write_files(
        tmp_path,
        "decoder.onnx",
        *(f"{part}-epoch-9{kind}.onnx" for part in parts if part != "decoder" for kind in ("", ".int8")),
    )
    if maker == "from_transducer":
        assert open_recognizer(tmp_path, 2) == "transducer"
    else:
        with pytest.raises(EngineError, match="cannot be loaded .Protobuf"):
            open_recognizer(tmp_path, 2)
    options = Sherpa.asked[maker]
    assert options["encoder"].endswith("encoder-epoch-9.int8.onnx") and options["decoder"].endswith("decoder.onnx")
    assert ("joiner" in options) == ("joiner" in parts)
    assert options["enable_endpoint_detection"] is True and options["num_threads"] == 2


WORDS = ("<blk>", "▁a", "▁person", "▁is", "▁running")


def write_model(folder):
    """A transducer that says its next word, over and over, at every loud 40 ms, and nothing where it is quiet."""

    def save(name, nodes, inputs, outputs, weights, metadata):
        graph = helper.make_graph(
            nodes,
            name,
            [helper.make_tensor_value_info(*i) for i in inputs],
            [helper.make_tensor_value_info(*o) for o in outputs],
            [numpy_helper.from_array(np.asarray(value), key) for key, value in weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
        onnx.save(model, str(folder / f"{name}.onnx"))

    following = np.eye(len(WORDS), k=1, dtype=np.float32)
    following[-1, 1] = 1
    node, floats, state, size = helper.make_node, TensorProto.FLOAT, (1, "N", 1), len(WORDS)
    save(
        "encoder",
        [
            node("ReduceMean", ["x"], ["mean"], axes=[1, 2], keepdims=1),
            node("Add", ["mean", "six"], ["raised"]),
            node("Clip", ["raised", "zero", "one"], ["encoder_out"]),
            node("Identity", ["h"], ["h2"]),
            node("Identity", ["c"], ["c2"]),
        ],
        [("x", floats, ("N", 4, 80)), ("h", floats, state), ("c", floats, state)],
        [("encoder_out", floats, ("N", 1, 1)), ("h2", floats, state), ("c2", floats, state)],
        {"six": np.float32(6), "zero": np.float32(0), "one": np.float32(1)},
        {
            "model_type": "lstm",
            "num_encoder_layers": 1,
            "T": 4,
            "decode_chunk_len": 4,
            "rnn_hidden_size": 1,
            "d_model": 1,
        },
    )
    save(
        "decoder",
        [
            node("Gather", ["y", "last"], ["newest"], axis=1),
            node("OneHot", ["newest", "depth", "off_on"], ["decoder_out"]),
        ],
        [("y", TensorProto.INT64, ("N", 2))],
        [("decoder_out", floats, ("N", size))],
        {"last": np.int64(1), "depth": np.int64(size), "off_on": np.array([0, 1], np.float32)},
        {"vocab_size": size, "context_size": 2},
    )
    save(
        "joiner",
        [
            node("MatMul", ["decoder_out", "next"], ["wanted"]),
            node("Mul", ["wanted", "encoder_out"], ["loud"]),
            node("Add", ["loud", "blank"], ["logit"]),
        ],
        [("encoder_out", floats, ("N", 1)), ("decoder_out", floats, ("N", size))],
        [("logit", floats, ("N", size))],
        {"next": 10 * following, "blank": np.array([5] + [0] * (size - 1), np.float32)},
        {"joiner_dim": 1},
    )
    (folder / "tokens.txt").write_text("".join(f"{word} {i}\n" for i, word in enumerate(WORDS)), encoding="utf-8")


def test_sherpa_onnx_itself_is_heard(tmp_path):
    pytest.importorskip("sherpa_onnx")
    write_model(tmp_path)
    speech = SpeechCaptions(open_recognizer(tmp_path), clock=lambda: 0.0)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, SAMPLE_RATE).astype(np.float32)
    events = []
    for _ in range(2):
        events += speech.accept(np.concatenate([silence(0.5), noise[: SAMPLE_RATE // 2], silence(3.0)]))
    events += speech.finish()
    first, second = [(e.segment, e.text) for e in events if e.final]
    assert first[0] == 0 and first[1].startswith("a person is running a person")
    assert second[0] == 1 and "is running a person" in second[1], "it goes on after where it stopped"
    for segment in (0, 1):
        grown = [e.text for e in events if e.segment == segment]
        assert len(grown) > 2 and all(later.startswith(earlier) for earlier, later in zip(grown, grown[1:]))


def test_a_model_that_sherpa_onnx_cannot_read_is_an_error_of_ours(tmp_path):
    pytest.importorskip("sherpa_onnx")
    write_model(tmp_path)
    (tmp_path / "joiner.onnx").write_text("garbage")
    with pytest.raises(EngineError, match="cannot be loaded"):
        open_recognizer(tmp_path)
