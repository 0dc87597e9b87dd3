import assert from "node:assert/strict";
import { test } from "node:test";

import { WEB, frame } from "./samples.mjs";

const { FrameGate, StreamError, readFrame, retryDelayMs } = await import(new URL("wire.js", WEB));

test("a frame's header is read to the last field", () => {
  const read = readFrame(frame({ format: 2, generation: 7, sequence: 9, pts: 2 ** 40 + 5, num: 1001, den: 30000, width: 256,
    height: 128, payload: new Uint8Array([5, 6, 7, 8]) }));
  const { payload, seconds, ...rest } = read;
  assert.deepEqual(rest, { format: "webp", generation: 7, sequence: 9, pts: 2 ** 40 + 5, width: 256, height: 128 });
  assert.equal(seconds, ((2 ** 40 + 5) * 1001) / 30000);
  assert.deepEqual([...payload], [5, 6, 7, 8]);
});

test("what lies between header and payload is passed over", () => {
  assert.deepEqual([...readFrame(frame({ headerBytes: 48 })).payload], [1, 2, 3]);
});

test("what is no frame is refused, with a remedy", () => {
  const raw = { format: 0, width: 2, height: 2 };
  for (const [wrong, buffer] of Object.entries({
    empty: new ArrayBuffer(0), short: new ArrayBuffer(39), magic: frame({ magic: "JPEG" }), version: frame({ version: 2 }),
    format: frame({ format: 3 }), longer: frame({ size: 2 }), shorter: frame({ size: 4 }), none: frame({ payload: new Uint8Array(0) }),
    width: frame({ width: 0 }), height: frame({ height: 4097 }), numerator: frame({ num: 0 }), denominator: frame({ den: 0 }),
    pts: frame({ pts: 2 ** 53 }), pixels: frame({ ...raw, payload: new Uint8Array(11) }),
  })) {
    assert.throws(() => readFrame(buffer), (error) => error instanceof StreamError && error.code === "bad_frame" &&
      error.remedy.length > 0 && !error.temporary, wrong);
  }
  assert.equal(readFrame(frame({ ...raw, payload: new Uint8Array(12) })).format, "raw");
});

test("tries are ever further apart, up to eight seconds, and not in step", () => {
  assert.deepEqual([0, 1, 2, 5, 6, 1000].map((attempt) => retryDelayMs(attempt, () => 1)), [250, 500, 1000, 8000, 8000, 8000]);
  assert.deepEqual([0, 5].map((attempt) => retryDelayMs(attempt, () => 0)), [125, 4000]);
  const delays = new Set(Array.from({ length: 20 }, () => retryDelayMs(3)));
  assert.ok(delays.size > 1 && [...delays].every((delay) => delay >= 1000 && delay <= 2000));
});

test("the gate lets nothing old, nothing out of order and nothing in pause through", () => {
  const gate = new FrameGate();
  const one = (generation, sequence) => ({ generation, sequence });
  assert.ok(gate.accepts(one(0, 0)));
  gate.pass(one(0, 3));
  assert.deepEqual([one(0, 3), one(0, 2), one(0, 4), one(1, 4)].map((f) => gate.accepts(f)), [false, false, true, true]);
  gate.require(2);
  assert.deepEqual([one(1, 9), one(2, 9)].map((f) => gate.accepts(f)), [false, true]);
  gate.require(1);
  assert.equal(gate.accepts(one(1, 9)), false, "what is required never goes back");
  gate.paused = true;
  assert.equal(gate.accepts(one(5, 9)), false);
  gate.paused = false;
  gate.reset();
  assert.ok(gate.accepts(one(0, 0)), "a new session counts anew");
});

test("only what may work later is tried again", () => {
  const temporary = (code) => new StreamError(code, "", "").temporary;
  assert.deepEqual(["capacity", "stopping", "internal", "too_slow", "lost", "unreachable"].map(temporary), Array(6).fill(true));
  assert.deepEqual(["token", "version", "hello", "bad_value", "too_fast", "origin", "bad_frame"].map(temporary), Array(7).fill(false));
});
