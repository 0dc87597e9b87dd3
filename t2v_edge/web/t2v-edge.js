/**
 * A client of `t2v-edge serve` for browsers, without dependencies (docs/web.md, docs/protocol.md).
 *
 *     import { LiveStream } from "./t2v-edge.js";
 *
 *     const stream = new LiveStream("ws://127.0.0.1:8765/live", { settings: { fps: 30 } });
 *     stream.addEventListener("frame", () => context.drawImage(stream.frame.bitmap, 0, 0));
 *     await stream.connect();
 *     stream.caption("a person is waving");
 *
 * @typedef {{fps?: number|string, size?: [number, number], seed?: number, format?: "raw"|"jpeg"|"webp",
 *   quality?: number}} Settings  The server chooses what is left out.
 * @typedef {import("./wire.js").Header} Header
 * @typedef {{bitmap: ImageBitmap, header: Header, caption: string}} LiveFrame  The next frame closes `bitmap`.
 * @typedef {"closed"|"connecting"|"open"|"waiting"|"refused"} State
 *   waiting: the connection is lost and will be opened again. refused: it will not, see `error`.
 */

import { StreamStatistics } from "./statistics.js";
import {
  FrameGate, StreamError, VERSION, decode, deferred, pick, readFrame, retryDelayMs, whyRefused,
} from "./wire.js";

export { FrameGate, StreamError, VERSION, decode, readFrame, retryDelayMs };

const PARTIAL_MS = 100; // the server takes 30 messages a second
const FIRST_BEAT_MS = 500;

/**
 * A stream that opens a lost connection again. Then settings, pause and the last caption stay, and frames start from 0.
 *
 * Events: `frame` (`stream.frame` is new), `showing` (`stream.shown`), `state` (`stream.state`, `error`, `retryInMs`),
 * `settings` (`stream.settings`, `paused`), `problem` (detail: a `StreamError` that does not end the connection).
 */
export class LiveStream extends EventTarget {
  /** @type {State} */ state = "closed";
  /** @type {StreamError|null} */ error = null;
  /** @type {LiveFrame|null} */ frame = null;
  /** The caption that the server shows. */ shown = "";
  /** The server's first message: version, session, bundle, base_fps. @type {any} */ welcome = null;
  /** The settings in force. @type {Settings} */ settings = {};
  /** Time to the next try, in state `waiting`. */ retryInMs = 0;
  paused = false;

  #options; #socket = /** @type {WebSocket|null} */ (null); #ready = /** @type {any} */ (null);
  #wanted = /** @type {Settings} */ ({}); #last = /** @type {any} */ (null); #open = true; // the current segment
  #segment = 0; #revision = -1; #attempt = 0; #session = 0; #reported = /** @type {StreamError|null} */ (null);
  #timers = /** @type {Record<string, any>} */ ({}); #partial = /** @type {any} */ (null); #partialAt = -Infinity;
  #states = /** @type {any[]} */ ([]); #counts = /** @type {any[]} */ ([]);
  #gate = new FrameGate(); #next = /** @type {Header|null} */ (null); #decoding = false; #broken = false;
  #statistics = new StreamStatistics(); #roundTripMs = /** @type {number|null} */ (null);
  #online = () => this.retry();

  /**
   * @param {string|URL} url  ws://host:port/live, or wss
   * @param {{token?: string, settings?: Settings, retry?: boolean, timeoutMs?: number, heartbeatMs?: number,
   *   WebSocket?: any, decode?: (header: Header) => Promise<any>}} [options]
   *   retry: whether a lost connection is opened again (default), without a limit. timeoutMs: for a connection and for an
   *   answer. heartbeatMs: between two checks of the connection. WebSocket, decode: for tests.
   */
  constructor(url, options = {}) {
    super();
    this.url = String(url);
    const { WebSocket } = globalThis;
    this.#options = { token: undefined, retry: true, timeoutMs: 10000, heartbeatMs: 5000, WebSocket, decode, ...options };
    this.#wanted = { ...options.settings };
  }

  /** The token for the next connection. @param {string|undefined} token */
  set token(token) {
    this.#options.token = token;
  }

  /** Connect. @returns {Promise<void>} done at the first welcome, rejected with a `StreamError` if refused */
  connect() {
    if (this.#ready !== null) return this.#ready.promise;
    const { promise } = this.#ready = deferred();
    globalThis.addEventListener?.("online", this.#online);
    this.#connect();
    return promise;
  }

  /** Try again now, in state `waiting`. */
  retry() {
    if (this.state === "waiting") this.#connect();
  }

  /** End the stream. */
  close() {
    if (this.#socket?.readyState === 1) this.#send({ type: "bye", reason: "done" });
    this.#end("closed", new StreamError("closed", "the stream is closed", "connect again"));
  }

  /**
   * Show a caption. The next one replaces a partial caption; a final one ends its segment. At most ten partial captions
   * a second are sent, the newest each time. After a reconnect the last one is sent again.
   * @param {string} text @param {{final?: boolean, start?: number, end?: number}} [options]
   */
  caption(text, { final = true, start, end } = {}) {
    this.#revision = this.#open ? this.#revision + 1 : 0;
    this.#segment += Number(!this.#open);
    this.#open = !final;
    this.#last = { type: "caption", segment: this.#segment, revision: this.#revision, text, final, start, end };
    if (this.state !== "open") return;
    const wait = final ? 0 : this.#partialAt + PARTIAL_MS - performance.now();
    this.#partial = this.#last;
    if (wait <= 0) this.#sendCaption();
    else this.#timers.partial ??= setTimeout(() => this.#sendCaption(), wait);
  }

  /** Pause. After this is done, no frame comes until `resume`. */
  pause() { return this.#control({ action: "pause" }); }

  resume() { return this.#control({ action: "resume" }); }

  /** Start the motion again from the beginning. @param {number} [seed] */
  reset(seed) { return this.#control({ action: "reset", seed }); }

  /** Change settings. @param {Settings} settings */
  set(settings) { return this.#control({ action: "set", ...settings }); }

  /** The server's figures (docs/protocol.md). @returns {Promise<any>} */
  stats() { return this.#ask({ type: "stats" }, this.#counts); }

  /**
   * This client's figures. fps: frames shown a second. latencyMs, medianLatencyMs: from sending a caption to decoding its
   * first frame, of the last one and of up to 64. roundTripMs: of the last check. Frames: `stale` came too late for their
   * caption, `overtaken` were replaced by a newer one, `broken` could not be decoded, `missed` never came.
   */
  get statistics() {
    const counted = this.#statistics.read(performance.now());
    return { ...counted, roundTripMs: this.#roundTripMs, generation: this.#gate.generation };
  }

  // The connection.

  #connect() {
    this.#clear();
    this.#reported = null;
    this.#session += 1;
    this.#setState("connecting");
    let socket;
    try {
      socket = new this.#options.WebSocket(this.url);
    } catch (error) { // a wrong address, or ws:// from an https page
      this.#end("refused", new StreamError("address", `${this.url}: ${/** @type {Error} */ (error).message}`,
        "write ws://host:port/live, or wss:// from an https page"));
      return;
    }
    let opened = false;
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    this.#timers.connect = setTimeout(() => this.#lost("no welcome came in time"), this.#options.timeoutMs);
    socket.onopen = () => {
      opened = true;
      this.#send({ type: "hello", versions: [VERSION], token: this.#options.token, ...this.#wanted });
    };
    socket.onmessage = (/** @type {MessageEvent} */ event) => {
      if (this.#socket === socket) this.#receive(event.data);
    };
    socket.onclose = (/** @type {CloseEvent} */ event) => {
      if (this.#socket === socket) this.#closed(event, opened);
    };
  }

  /** @param {CloseEvent} event @param {boolean} opened */
  async #closed(event, opened) {
    const session = this.#session;
    this.#socket = null;
    if (this.#reported === null && !opened) {
      const why = await whyRefused(this.url, this.#options.timeoutMs);
      if (session !== this.#session || this.state !== "connecting") return;
      this.#reported = why;
    }
    if (this.#reported === null) { // the last message may not have come
      const [code, message] = (event.reason ?? "").split(/: (.*)/s);
      if (message) this.#reported = new StreamError(code, message, "connect again");
    }
    this.#lost("the connection is lost");
  }

  /** @param {string} why  if the server has not said it */
  #lost(why) {
    const error = this.#reported ?? new StreamError("lost", why, "check that the server runs and can be reached");
    if (!this.#options.retry || !error.temporary) return this.#end("refused", error);
    this.#disconnect();
    this.#fail(error);
    this.error = error;
    this.retryInMs = retryDelayMs(this.#attempt++);
    this.#timers.retry = setTimeout(() => this.#connect(), this.retryInMs);
    this.#setState("waiting");
  }

  /** @param {State} state @param {StreamError} error */
  #end(state, error) {
    this.#disconnect();
    this.#fail(error);
    globalThis.removeEventListener?.("online", this.#online);
    const ready = this.#ready;
    this.#ready = null;
    this.error = state === "refused" ? error : null;
    this.#setState(state);
    ready?.reject(error);
  }

  #disconnect() {
    this.#clear();
    const socket = this.#socket;
    this.#socket = null;
    this.#next = null;
    socket?.close();
  }

  #clear() {
    for (const name of Object.keys(this.#timers)) clearTimeout(this.#timers[name]);
    this.#timers = {};
    this.#partial = null;
  }

  /** @param {StreamError} error */
  #fail(error) {
    for (const waiter of [...this.#states.splice(0), ...this.#counts.splice(0)]) waiter.reject(error);
  }

  /** @param {State} state */
  #setState(state) {
    this.state = state;
    this.dispatchEvent(new CustomEvent("state"));
  }

  // Messages from the server.

  /** @param {string|ArrayBuffer} data */
  #receive(data) {
    try {
      if (typeof data === "string") this.#receiveText(JSON.parse(data));
      else this.#receiveFrame(readFrame(data));
    } catch (error) {
      const wrong = error instanceof StreamError ? error : new StreamError("bad_message",
        `the server's message cannot be read (${error})`, "use the same version of t2v-edge on both sides");
      this.#end("refused", wrong);
    }
  }

  /** @param {any} message */
  #receiveText(message) {
    const { type } = message;
    if (type === "welcome") this.#begin(message);
    else if (type === "showing") this.#show(message);
    else if (type === "state") this.#applyState(message);
    else if (type === "stats") this.#counts.shift()?.resolve(message);
    else if (type === "bye") this.#reported ??= new StreamError("stopping", message.reason || "the server stops", "wait for it");
    else if (type === "error") this.#refuse(new StreamError(message.code, message.message, message.remedy), message.fatal);
    // other types are of later versions
  }

  /** @param {any} welcome */
  #begin(welcome) {
    clearTimeout(this.#timers.connect);
    this.welcome = welcome;
    this.settings = pick(welcome);
    this.error = null;
    this.#attempt = 0;
    this.#gate.reset();
    this.#gate.paused = this.paused;
    this.#statistics.restart();
    if (this.paused) {
      this.#states.push(deferred()); // takes this control's answer
      this.#send({ type: "control", action: "pause" });
    }
    if (this.#last !== null) {
      this.#partial = this.#last;
      this.#sendCaption();
    }
    this.#timers.beat = setTimeout(() => this.#beat(), Math.min(FIRST_BEAT_MS, this.#options.heartbeatMs));
    this.#timers.heartbeat = setInterval(() => this.#beat(), this.#options.heartbeatMs);
    this.#setState("open");
    this.dispatchEvent(new CustomEvent("settings"));
    this.#ready?.resolve();
  }

  /** @param {any} showing */
  #show(showing) {
    this.#gate.require(showing.generation);
    this.shown = showing.text;
    this.#statistics.showing(showing);
    this.dispatchEvent(new CustomEvent("showing", { detail: showing }));
  }

  /** @param {any} state */
  #applyState(state) {
    this.settings = pick(state);
    this.paused = this.#gate.paused = state.paused;
    this.#gate.require(state.generation);
    this.#states.shift()?.resolve(state);
    this.dispatchEvent(new CustomEvent("settings"));
  }

  /** @param {StreamError} error @param {boolean} fatal */
  #refuse(error, fatal) {
    if (fatal) this.#reported = error;
    else if (error.code === "bad_value" && this.#states.length) this.#states.shift().reject(error);
    else this.dispatchEvent(new CustomEvent("problem", { detail: error }));
  }

  /** One frame is being decoded, and one waits. A newer one replaces the one that waits. @param {Header} header */
  #receiveFrame(header) {
    this.#statistics.counts.received += 1;
    if (!this.#gate.accepts(header)) {
      this.#statistics.counts.stale += 1;
      return;
    }
    this.#statistics.counts.overtaken += Number(this.#next !== null);
    this.#next = header;
    if (!this.#decoding) this.#decodeAll();
  }

  async #decodeAll() {
    this.#decoding = true;
    while (this.#next !== null) {
      const header = this.#next;
      const session = this.#session;
      this.#next = null;
      try {
        const bitmap = await this.#options.decode(header);
        if (session === this.#session && this.#socket !== null && this.#gate.accepts(header)) this.#deliver(header, bitmap);
        else {
          this.#statistics.counts.stale += 1;
          bitmap.close();
        }
      } catch {
        this.#statistics.counts.broken += 1;
        if (!this.#broken) {
          this.dispatchEvent(new CustomEvent("problem", { detail: new StreamError("decode",
            `this browser cannot decode a frame of ${header.format}`, "choose another format") }));
        }
        this.#broken = true;
      }
    }
    this.#decoding = false;
  }

  /** @param {Header} header @param {ImageBitmap} bitmap */
  #deliver(header, bitmap) {
    this.#broken = false;
    this.#statistics.frame(header, performance.now());
    this.#gate.pass(header);
    const before = this.frame;
    this.frame = { bitmap, header, caption: this.shown };
    before?.bitmap.close();
    this.dispatchEvent(new CustomEvent("frame"));
  }

  // Messages to the server.

  #sendCaption() {
    clearTimeout(this.#timers.partial);
    delete this.#timers.partial;
    const message = this.#partial;
    this.#partial = null;
    if (message === null) return;
    this.#partialAt = performance.now();
    this.#statistics.caption(message, this.#gate.generation, this.#partialAt);
    this.#send(message);
  }

  /** @param {any} message */
  #send(message) {
    if (this.#socket?.readyState === 1) this.#socket.send(JSON.stringify(message)); // undefined values are left out
  }

  /** @param {any} control */
  async #control(control) {
    const { action, ...settings } = control;
    const state = await this.#ask({ type: "control", ...control }, this.#states);
    Object.assign(this.#wanted, pick(settings)); // asked for again after a reconnect
    return state;
  }

  /** @param {any} message @param {any[]} waiters */
  #ask(message, waiters) {
    if (this.state !== "open") {
      return Promise.reject(this.error ?? new StreamError("closed", "there is no connection", "connect first"));
    }
    const waiter = deferred();
    waiters.push(waiter);
    this.#send(message);
    return waiter.promise;
  }

  /** Check the connection with a request. A browser does not report a connection that died without a close. */
  #beat() {
    const asked = performance.now();
    if (this.#counts.length) {
      if (asked - this.#counts[0].at > this.#options.timeoutMs) this.#lost("the server does not answer");
      return;
    }
    this.stats().then(() => { this.#roundTripMs = performance.now() - asked; }, () => {});
  }
}
