import assert from "node:assert/strict";
import { test } from "node:test";

import { WEB } from "./samples.mjs";

const { StreamStatistics } = await import(new URL("statistics.js", WEB));
const { Speech, Transcript, whyNoSpeech } = await import(new URL("speech.js", WEB));
const { inFrontOf, multiply, onHead, wrap } = await import(new URL("xr-scene.js", WEB));
const { supportedModes } = await import(new URL("xr.js", WEB));

const IDENTITY = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1];
const header = (generation, sequence, bytes = 10) => ({ generation, sequence, payload: new Uint8Array(bytes) });

test("frames a second are those of the last two seconds", () => {
  const statistics = new StreamStatistics();
  for (let index = 0; index < 90; index += 1) statistics.frame(header(0, index, 1000), index * (1000 / 30));
  const { fps, bytesPerS, shown } = statistics.read(3000);
  assert.deepEqual([Math.round(fps), Math.round(bytesPerS), shown], [30, 30000, 90]);
  assert.equal(statistics.read(9000).fps, 0);
});

test("the latency is from a caption to its first frame, whichever word of it comes first", () => {
  const statistics = new StreamStatistics();
  statistics.caption({ segment: 0, revision: 0 }, -1, 1000);
  statistics.showing({ segment: 0, revision: 0, generation: 0 });
  assert.equal(statistics.read(1010).latencyMs, null, "no frame yet");
  statistics.frame(header(0, 0), 1040);
  assert.equal(statistics.read(1040).latencyMs, 40);
  statistics.caption({ segment: 1, revision: 0 }, 0, 2000);
  statistics.frame(header(1, 1), 2030);
  statistics.frame(header(1, 2), 2060);
  statistics.showing({ segment: 1, revision: 0, generation: 1 });
  assert.equal(statistics.read(2060).latencyMs, 30, "a frame may come before the message that says whose it is");
  statistics.caption({ segment: 2, revision: 0 }, 1, 3000);
  statistics.showing({ segment: 2, revision: 0, generation: 1 });
  statistics.frame(header(1, 3), 3500);
  assert.equal(statistics.read(3500).latencyMs, 30, "a caption that changed nothing has no first frame");
  assert.equal(statistics.read(3500).medianLatencyMs, 40);
});

test("a gap in the sequence is frames that never came, and a new session is none", () => {
  const statistics = new StreamStatistics();
  for (const sequence of [5, 6, 9]) statistics.frame(header(0, sequence), 0);
  statistics.restart();
  statistics.frame(header(0, 0), 0);
  assert.equal(statistics.counts.missed, 2);
});

const results = (...parts) => parts.map(([transcript, isFinal]) => Object.assign([{ transcript }], { isFinal }));

test("a recogniser's guesses are one partial caption, and what it is sure of is final, once", () => {
  const transcript = new Transcript();
  assert.deepEqual(transcript.read(results(["a person", false], [" is running", false])), [{ text: "a person is running", final: false }]);
  assert.deepEqual(transcript.read(results(["a person", false], [" is running", false])), [], "nothing new");
  assert.deepEqual(transcript.read(results(["a person is running", true], ["now", false])), [
    { text: "a person is running", final: true }, { text: "now", final: false }]);
  assert.deepEqual(transcript.read(results(["a person is running", true], ["", true], ["now he", false])), [{ text: "now he", final: false }]);
  transcript.restart();
  assert.deepEqual(transcript.read(results(["一个人", false], ["在跑步", false])), [{ text: "一个人在跑步", final: false }]);
});

/** A recogniser that does as it is told. */
function recogniser() {
  const made = [];
  class Recognition {
    constructor() { made.push(this); }

    start() { this.started = true; }

    stop() { this.stopped = true; }
  }
  return { Recognition, made };
}

test("listening goes on after a silence, and stops for what will not get better, with a reason", () => {
  const { Recognition, made } = recogniser();
  const heard = [];
  const changes = [];
  const speech = new Speech((text, final) => heard.push([text, final]), (...change) => changes.push(change), Recognition);
  speech.start("zh-CN");
  assert.deepEqual([made[0].lang, made[0].continuous, made[0].interimResults], ["zh-CN", true, true]);
  made[0].onresult({ results: results(["一个人", true]) });
  made[0].onerror({ error: "no-speech" });
  made[0].onend();
  assert.equal(made.length, 2);
  made[1].onresult({ results: results(["在挥手", true]) });
  assert.deepEqual(heard, [["一个人", true], ["在挥手", true]]);
  made[1].onerror({ error: "not-allowed" });
  assert.equal(speech.listening, false);
  assert.match(changes.at(-1)[1], /microphone is not allowed/);
  made[1].onend();
  assert.equal(made.length, 2, "and it does not begin anew by itself");
});

test("a recogniser that ends at once is not begun for ever", () => {
  const { Recognition, made } = recogniser();
  const changes = [];
  const speech = new Speech(() => {}, (...change) => changes.push(change), Recognition);
  speech.start("en-US");
  for (let index = 0; index < made.length && index < 20; index += 1) made[index].onend();
  assert.ok(made.length < 5 && !speech.listening && changes.at(-1)[1]);
});

test("where nothing can be spoken the reason is said", () => {
  assert.match(whyNoSpeech({}), /Chrome/);
  assert.match(whyNoSpeech({ webkitSpeechRecognition: class {}, isSecureContext: false }), /--tls-cert/);
  assert.equal(whyNoSpeech({ SpeechRecognition: class {}, isSecureContext: true }), "");
});

test("where there is no headset the reason is said", async () => {
  const device = (...modes) => ({ isSessionSupported: async (mode) => modes.includes(mode) });
  assert.match((await supportedModes(device("immersive-vr"), false)).reason, /--tls-cert/);
  assert.match((await supportedModes(undefined, true)).reason, /no WebXR/);
  assert.match((await supportedModes(device(), true)).reason, /No headset/);
  const broken = { isSessionSupported: async () => { throw new Error("denied"); } };
  assert.match((await supportedModes(broken, true)).reason, /No headset/);
  assert.deepEqual(await supportedModes(device("immersive-vr"), true), { vr: true, ar: false, reason: "" });
});

const place = (matrix, [x, y, z, w]) => [0, 1, 2].map((row) =>
  Math.round(1e4 * (matrix[row] * x + matrix[4 + row] * y + matrix[8 + row] * z + matrix[12 + row] * w)) / 1e4 + 0); // no -0

test("the panel is put before the viewer at eye level, upright, and faces them", () => {
  assert.deepEqual(place(inFrontOf([...IDENTITY.slice(0, 12), 1, 1.6, 2, 1]), [0, 0, 0, 1]), [1, 1.6, 0.4]);
  const right = [0, 0, 1, 0, 0, 1, 0, 0, -1, 0, 0, 0, 0, 1.5, 0, 1]; // looks along +x
  const panel = inFrontOf(right);
  assert.deepEqual(place(panel, [0, 0, 0, 1]), [1.6, 1.5, 0]);
  assert.deepEqual(place(panel, [0, 0, 1, 0]), [-1, 0, 0], "its face looks at the viewer");
  assert.deepEqual(place(panel, [0, 1, 0, 0]), [0, 1, 0]);
  const tilted = [1, 0, 0, 0, 0, 0.8, -0.6, 0, 0, 0.6, 0.8, 0, 0, 1.6, 0, 1]; // looks forward and down
  assert.deepEqual(place(inFrontOf(tilted), [0, 0, 0, 1]), [0, 1.6, -1.6]);
  assert.deepEqual(place(onHead(tilted), [0, 0, 0, 1]), [0, 0.64, -1.28]);
  const down = [1, 0, 0, 0, 0, 0, -1, 0, 0, 1, 0, 0, 0, 1.6, 0, 1]; // looks at its feet, the top of the head forward
  assert.deepEqual(place(inFrontOf(down), [0, 0, 0, 1]), [0, 1.6, -1.6]);
});

test("matrices multiply by columns", () => {
  const move = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 5, 6, 7, 1];
  const grow = [2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1];
  assert.deepEqual([...multiply(move, grow)], [2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0, 5, 6, 7, 1]);
});

test("captions break at spaces and between Chinese characters, and lose nothing", () => {
  const fits = (line) => line.length <= 10;
  assert.deepEqual(wrap("a person is playing ball", fits), ["a person", "is playing", "ball"]);
  assert.deepEqual(wrap("一个人正在打篮球一个人正在打篮球", fits), ["一个人正在打篮球一个", "人正在打篮球"]);
  assert.deepEqual(wrap("unbreakableword", fits), ["unbreakableword"]);
  assert.deepEqual(wrap("  ", fits), []);
});
