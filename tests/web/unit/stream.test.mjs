import assert from "node:assert/strict";
import { test } from "node:test";

import { WEB, decoder, frame, sockets, turn, until } from "./samples.mjs";

const { LiveStream } = await import(new URL("t2v-edge.js", WEB));

/** A stream that has been welcomed, its socket, and its decoder. */
function connected(options = {}) {
  const { Fake, opened } = sockets();
  const decoding = decoder();
  const stream = new LiveStream("ws://127.0.0.1:1/live", { WebSocket: Fake, decode: decoding.decode, ...options });
  const seen = { states: [], frames: [], problems: [], showing: [] };
  stream.addEventListener("state", () => seen.states.push(stream.state));
  stream.addEventListener("frame", () => seen.frames.push([stream.frame.header.generation, stream.frame.header.sequence]));
  stream.addEventListener("problem", (event) => seen.problems.push(event.detail.code));
  const ready = stream.connect();
  opened[0].welcome();
  return { stream, opened, socket: opened[0], decoding, seen, ready };
}

async function decodeNext(decoding) {
  decoding.waiting.shift().done();
  await turn();
}

test("the hello has token and settings, and the welcome what is in force", async (t) => {
  const { stream, socket, seen, ready } = connected({ token: "secret", settings: { fps: 72 } });
  t.after(() => stream.close());
  await ready;
  assert.deepEqual(socket.sent, [{ type: "hello", versions: [1], token: "secret", fps: 72 }]);
  assert.deepEqual(stream.settings, { fps: 30, size: [4, 2], seed: 0, format: "jpeg", quality: 85 });
  assert.deepEqual(seen.states, ["connecting", "open"]);
});

test("partial captions rise in revision, a final one ends the segment", (t) => {
  t.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const { stream, socket } = connected();
  t.after(() => stream.close());
  stream.caption("a", { final: false });
  stream.caption("a person", { final: true });
  stream.caption("一个人");
  stream.caption("b", { final: false, start: 1.5 });
  const captions = socket.sent.filter(({ type }) => type === "caption").map(({ segment, revision, text, final }) => [segment, revision, text, final]);
  assert.deepEqual(captions, [[0, 0, "a", false], [0, 1, "a person", true], [1, 0, "一个人", true]]);
  t.mock.timers.tick(100);
  assert.deepEqual(socket.last("caption"), { type: "caption", segment: 2, revision: 0, text: "b", final: false, start: 1.5 });
});

test("partial captions are sent ten times a second at most, the newest each time", (t) => {
  t.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const { stream, socket } = connected();
  t.after(() => stream.close());
  for (let letter = 1; letter <= 20; letter += 1) stream.caption("x".repeat(letter), { final: false });
  t.mock.timers.tick(100);
  const texts = socket.sent.filter(({ type }) => type === "caption").map(({ text }) => text.length);
  assert.deepEqual(texts, [1, 20]);
  stream.caption("y", { final: false });
  stream.caption("done");
  t.mock.timers.tick(500);
  assert.equal(socket.last("caption").text, "done", "a partial that waited does not come after its final");
});

test("one frame is decoded and one waits, whatever comes", async (t) => {
  const { stream, socket, decoding, seen } = connected();
  t.after(() => stream.close());
  for (let sequence = 0; sequence < 50; sequence += 1) socket.say(frame({ sequence }));
  assert.equal(decoding.waiting.length, 1);
  await decodeNext(decoding);
  assert.equal(decoding.waiting.length, 1);
  await decodeNext(decoding);
  assert.deepEqual(seen.frames, [[0, 0], [0, 49]]);
  assert.equal(decoding.waiting.length, 0);
  const { received, shown, overtaken, missed } = stream.statistics;
  assert.deepEqual([received, shown, overtaken, missed], [50, 2, 48, 48]);
  assert.deepEqual(decoding.bitmaps.map(({ closed }) => closed), [true, false], "the one before is let go");
});

test("no frame older than what is shown is handed out, not even one that was being decoded", async (t) => {
  const { stream, socket, decoding, seen } = connected();
  t.after(() => stream.close());
  socket.say(frame({ generation: 0, sequence: 0 }));
  socket.say({ type: "showing", generation: 1, segment: 0, revision: 0, text: "new" });
  await decodeNext(decoding);
  assert.deepEqual(seen.frames, []);
  assert.ok(decoding.bitmaps[0].closed);
  socket.say(frame({ generation: 0, sequence: 1 }));
  assert.equal(decoding.waiting.length, 0, "and none that comes late is decoded");
  socket.say(frame({ generation: 1, sequence: 2 }));
  await decodeNext(decoding);
  assert.deepEqual(seen.frames, [[1, 2]]);
  assert.equal(stream.frame.caption, "new");
  assert.equal(stream.statistics.stale, 2);
});

test("after a pause is answered no frame comes, and after resume they do", async (t) => {
  const { stream, socket, decoding, seen } = connected();
  t.after(() => stream.close());
  socket.say(frame({ sequence: 0 }));
  const pausing = stream.pause();
  assert.deepEqual(socket.last("control"), { type: "control", action: "pause" });
  socket.say({ type: "state", paused: true, generation: 0 });
  await pausing;
  await decodeNext(decoding);
  socket.say(frame({ sequence: 1 }));
  assert.deepEqual([seen.frames.length, decoding.waiting.length, stream.paused], [0, 0, true]);
  const resuming = stream.resume();
  socket.say({ type: "state", paused: false, generation: 0 });
  await resuming;
  socket.say(frame({ sequence: 2 }));
  await decodeNext(decoding);
  assert.deepEqual(seen.frames, [[0, 2]]);
});

test("a lost connection is tried again with what was asked for, and says the last caption anew", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const { stream, opened, seen, decoding } = connected({ token: "secret" });
  t.after(() => stream.close());
  const setting = stream.set({ fps: 60, format: "webp" });
  opened[0].say({ type: "state", paused: false, generation: 1, fps: 60, size: [4, 2], seed: 0, format: "webp", quality: 85 });
  await setting;
  const pausing = stream.pause();
  opened[0].say({ type: "state", paused: true, generation: 1 });
  await pausing;
  stream.caption("a person is waving");
  opened[0].say({ type: "showing", generation: 2, segment: 0, revision: 0, text: "a person is waving" });
  opened[0].lose();
  await turn();
  assert.equal(stream.state, "waiting");
  assert.ok(stream.retryInMs >= 125 && stream.retryInMs <= 250);
  assert.equal(stream.error.code, "lost");
  t.mock.timers.tick(250);
  assert.equal(opened.length, 2);
  opened[1].welcome();
  assert.deepEqual(opened[1].sent.map(({ type, action, text, fps, format, token }) => [type, action ?? text ?? [fps, format, token]]), [
    ["hello", [60, "webp", "secret"]], ["control", "pause"], ["caption", "a person is waving"]]);
  assert.deepEqual(seen.states, ["connecting", "open", "waiting", "connecting", "open"]);
  opened[1].say({ type: "state", paused: true, generation: 0 });
  const resuming = stream.resume();
  opened[1].say({ type: "state", paused: false, generation: 0 });
  await resuming;
  opened[1].say(frame({ generation: 0, sequence: 0 }));
  await decodeNext(decoding);
  assert.deepEqual(seen.frames, [[0, 0]], "generations count anew");
});

test("a frame of the connection before is not handed out in the next", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const { stream, opened, seen, decoding } = connected();
  t.after(() => stream.close());
  opened[0].say(frame({ sequence: 9 }));
  opened[0].lose();
  await turn();
  stream.retry();
  opened[1].welcome();
  await decodeNext(decoding);
  assert.deepEqual(seen.frames, []);
  opened[1].say(frame({ sequence: 0 }));
  await decodeNext(decoding);
  assert.deepEqual(seen.frames, [[0, 0]]);
});

test("tries go on while the server is away, ever further apart, until it is back", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const { stream, opened } = connected();
  t.after(() => stream.close());
  opened[0].say({ type: "bye", reason: "the server stops" });
  opened[0].lose(1001);
  await turn();
  assert.equal(stream.error.code, "stopping");
  for (let attempt = 1; attempt < 8; attempt += 1) {
    const most = Math.min(8000, 250 * 2 ** (attempt - 1));
    assert.ok(stream.retryInMs >= most / 2 && stream.retryInMs <= most, `${attempt}: ${stream.retryInMs}`);
    t.mock.timers.tick(8000);
    assert.equal(opened.length, attempt + 1);
    opened[attempt].lose();
    await turn();
  }
  stream.retry();
  opened.at(-1).welcome();
  assert.equal(stream.state, "open");
  assert.equal(stream.error, null);
  opened.at(-1).lose();
  await turn();
  assert.ok(stream.retryInMs <= 250, "after a welcome it counts from the start");
});

for (const code of ["token", "version", "hello", "bad_value", "too_fast"]) {
  test(`a refusal for ${code} is final, with the remedy that the server sent`, async (t) => {
    const { Fake, opened } = sockets();
    const stream = new LiveStream("ws://127.0.0.1:1/live", { WebSocket: Fake });
    const refused = assert.rejects(stream.connect(), { code, message: "no", remedy: "do this" });
    opened[0].open();
    opened[0].say({ type: "error", code, message: "no", remedy: "do this", fatal: true });
    opened[0].lose(1008);
    await refused;
    assert.equal(stream.state, "refused");
    assert.deepEqual([stream.error.code, opened.length], [code, 1]);
    stream.token = "another";
    const again = stream.connect();
    opened[1].welcome();
    await again;
    assert.equal(opened[1].sent[0].token, "another");
    stream.close();
    assert.deepEqual([stream.state, opened[1].last("bye")], ["closed", { type: "bye", reason: "done" }]);
  });
}

test("a refusal whose message was lost is read from the close reason", async () => {
  const { Fake, opened } = sockets();
  const stream = new LiveStream("ws://127.0.0.1:1/live", { WebSocket: Fake });
  const refused = assert.rejects(stream.connect(), { code: "token", message: "the token is missing or wrong" });
  opened[0].open();
  opened[0].lose(1008, "token: the token is missing or wrong");
  await refused;
});

test("a server at its capacity is tried again, and retry() does not wait", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  const { Fake, opened } = sockets();
  const stream = new LiveStream("ws://127.0.0.1:1/live", { WebSocket: Fake });
  t.after(() => stream.close());
  const ready = stream.connect();
  opened[0].open();
  opened[0].say({ type: "error", code: "capacity", message: "the server has 8 clients", remedy: "try again later", fatal: true });
  opened[0].lose(1013);
  await turn();
  assert.deepEqual([stream.state, stream.error.code, stream.error.remedy], ["waiting", "capacity", "try again later"]);
  stream.retry();
  opened[1].welcome();
  await ready;
});

test("what cannot be done is told, and the stream goes on", async (t) => {
  const { stream, socket, seen } = connected();
  t.after(() => stream.close());
  const setting = assert.rejects(stream.set({ size: [13, 13] }), { code: "bad_value", remedy: "take another" });
  socket.say({ type: "error", code: "bad_value", message: "size is 13x13", remedy: "take another", fatal: false });
  await setting;
  socket.say({ type: "error", code: "caption", message: "no tokens", remedy: "reword it", fatal: false });
  socket.say({ type: "a later version's" });
  assert.deepEqual(seen.problems, ["caption"]);
  assert.equal(stream.state, "open");
});

test("a frame that cannot be decoded is told once, and the next one is shown", async (t) => {
  const { stream, socket, decoding, seen } = connected();
  t.after(() => stream.close());
  for (const sequence of [0, 1]) {
    socket.say(frame({ sequence }));
    decoding.waiting.shift().reject(new Error("no"));
    await turn();
  }
  socket.say(frame({ sequence: 2 }));
  await decodeNext(decoding);
  assert.deepEqual([seen.problems, seen.frames, stream.statistics.broken], [["decode"], [[0, 2]], 2]);
});

test("what makes no sense ends the stream with an error, not with an exception", async () => {
  for (const nonsense of [new ArrayBuffer(50), "{"]) {
    const { stream, socket } = connected();
    if (typeof nonsense === "string") socket.onmessage({ data: nonsense });
    else socket.say(nonsense);
    assert.equal(stream.state, "refused");
    assert.match(stream.error.code, /^bad_(frame|message)$/);
  }
});

test("a connection that died without a word is noticed", async (t) => {
  const { stream, opened, socket } = connected({ heartbeatMs: 10, timeoutMs: 40 });
  t.after(() => stream.close());
  await until(() => socket.last("stats") !== undefined);
  socket.say({ type: "stats", seconds: 1 });
  await turn();
  assert.ok(stream.statistics.roundTripMs >= 0);
  await until(() => stream.state === "waiting");
  assert.equal(stream.error.message, "the server does not answer");
  await until(() => opened.length === 2);
});

test("waiting for an answer ends when the connection does", async (t) => {
  const { stream, socket } = connected();
  t.after(() => stream.close());
  const asking = [stream.stats(), stream.reset(5)].map((one) => assert.rejects(one, { code: "lost" }));
  socket.lose();
  await Promise.all(asking);
  await assert.rejects(stream.pause(), { code: "lost" });
});

test("an address that is none is refused with a remedy", async () => {
  class Picky {
    constructor() { throw new SyntaxError("An invalid URL"); }
  }
  const stream = new LiveStream("nowhere", { WebSocket: Picky });
  await assert.rejects(stream.connect(), { code: "address", remedy: /ws:\/\/host:port\/live/ });
});
