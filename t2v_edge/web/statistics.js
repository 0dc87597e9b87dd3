/**
 * Statistics of a stream: counts of frames, frames a second, and the time until a caption is seen. It reads no clock.
 *
 * @typedef {import("./wire.js").Header} Header
 */

const WINDOW_MS = 2000; // of frames a second
const KEPT = 64; // captions

export class StreamStatistics {
  /** stale: too late for their caption. overtaken: replaced by a newer one. broken: not decoded. missed: never came. */
  counts = { received: 0, shown: 0, stale: 0, overtaken: 0, broken: 0, missed: 0 };

  #frames = /** @type {{at: number, bytes: number}[]} */ ([]);
  #sent = /** @type {{segment: number, revision: number, generation: number, at: number}[]} */ ([]);
  #awaited = /** @type {{generation: number, at: number}[]} */ ([]);
  #first = { generation: -1, at: 0 };
  #sequence = -1;
  #latencies = /** @type {number[]} */ ([]);

  /** Start a new session, whose numbers count from 0. */
  restart() {
    this.#sent = [];
    this.#awaited = [];
    this.#first = { generation: -1, at: 0 };
    this.#sequence = -1;
  }

  /** Count a caption that is sent while `generation` is shown. @param {{segment: number, revision: number}} caption
   * @param {number} generation @param {number} at milliseconds */
  caption({ segment, revision }, generation, at) {
    this.#sent.push({ segment, revision, generation, at });
    if (this.#sent.length > KEPT) this.#sent.shift();
  }

  /** Note that the server shows a caption. @param {{segment: number, revision: number, generation: number}} showing */
  showing({ segment, revision, generation }) {
    const index = this.#sent.findIndex((one) => one.segment === segment && one.revision === revision);
    if (index < 0) return;
    const [caption] = this.#sent.splice(0, index + 1).slice(-1);
    if (generation > caption.generation) this.#awaited.push({ generation, at: caption.at });
    this.#measure();
  }

  /** Count a frame that is shown. @param {Header} header @param {number} at milliseconds */
  frame(header, at) {
    if (this.#sequence >= 0) this.counts.missed += header.sequence - this.#sequence - 1;
    this.#sequence = header.sequence;
    if (header.generation > this.#first.generation) this.#first = { generation: header.generation, at };
    this.counts.shown += 1;
    this.#frames.push({ at, bytes: header.payload.length });
    this.#forget(at);
    this.#measure();
  }

  /** @param {number} now milliseconds */
  read(now) {
    this.#forget(now);
    const sorted = [...this.#latencies].sort((a, b) => a - b);
    return {
      fps: (1000 * this.#frames.length) / WINDOW_MS,
      bytesPerS: (1000 * this.#frames.reduce((sum, { bytes }) => sum + bytes, 0)) / WINDOW_MS,
      latencyMs: this.#latencies.at(-1) ?? null,
      medianLatencyMs: sorted[sorted.length >> 1] ?? null,
      ...this.counts,
    };
  }

  /** @param {number} now */
  #forget(now) {
    while (this.#frames.length && this.#frames[0].at <= now - WINDOW_MS) this.#frames.shift();
  }

  /** Measure captions whose first frame is here. A frame may come before the message that names its caption. */
  #measure() {
    while (this.#awaited.length && this.#awaited[0].generation <= this.#first.generation) {
      const [{ at }] = this.#awaited.splice(0, 1);
      this.#latencies.push(Math.max(0, this.#first.at - at));
      if (this.#latencies.length > KEPT) this.#latencies.shift();
    }
  }
}
