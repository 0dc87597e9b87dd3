/**
 * The protocol (docs/protocol.md, version 1) without a connection: frames, their order, errors and retries.
 *
 * @typedef {{format: "raw"|"jpeg"|"webp", generation: number, sequence: number, pts: number, seconds: number,
 *   width: number, height: number, payload: Uint8Array}} Header  A binary message. `payload` is a view of it.
 */

export const VERSION = 1;
const FORMATS = /** @type {const} */ (["raw", "jpeg", "webp"]);
const HEADER_BYTES = 40;
const MAGIC = 0x54325646; // "T2VF"
const MAX_SIDE = 4096;
const MAX_PAYLOAD_BYTES = 2 ** 26;
const TEMPORARY = new Set(["capacity", "stopping", "internal", "too_slow", "lost", "unreachable"]);
const FIRST_WAIT_MS = 250;
const LONGEST_WAIT_MS = 8000;

/** An error with a remedy. `code` is the protocol's, or `lost`, `unreachable`, `origin`, `decode`, `closed`. */
export class StreamError extends Error {
  /** @param {string} code @param {string} message @param {string} remedy */
  constructor(code, message, remedy) {
    super(message);
    this.name = "StreamError";
    this.code = code;
    this.remedy = remedy;
  }

  /** Whether the same connection may work later. */
  get temporary() {
    return TEMPORARY.has(this.code);
  }
}

/**
 * Read a binary message.
 * @param {ArrayBuffer} buffer
 * @returns {Header}
 * @throws {StreamError} `bad_frame`
 */
export function readFrame(buffer) {
  const view = new DataView(buffer);
  const wrong = (/** @type {string} */ why) =>
    new StreamError("bad_frame", `this message is not a frame: ${why}`, "use the same version of t2v-edge on both sides");
  if (view.byteLength < HEADER_BYTES || view.getUint32(0) !== MAGIC) throw wrong("it does not begin as one");
  if (view.getUint8(4) !== VERSION) throw wrong(`its version is ${view.getUint8(4)}`);
  const format = FORMATS[view.getUint8(5)];
  const start = view.getUint16(6, true);
  const size = view.getUint32(36, true);
  const [width, height] = [view.getUint16(32, true), view.getUint16(34, true)];
  const [numerator, denominator] = [view.getUint32(24, true), view.getUint32(28, true)];
  const pts = view.getUint32(20, true) * 2 ** 32 + view.getUint32(16, true);
  if (format === undefined) throw wrong(`its format is ${view.getUint8(5)}`);
  if (start < HEADER_BYTES || size < 1 || size > MAX_PAYLOAD_BYTES || start + size !== view.byteLength) {
    throw wrong("its length is not that of its header");
  }
  if (!(width >= 1 && width <= MAX_SIDE && height >= 1 && height <= MAX_SIDE)) throw wrong("its size is out of range");
  if (format === "raw" && size !== width * height * 3) throw wrong("its pixels do not fill its size");
  if (numerator < 1 || denominator < 1 || !Number.isSafeInteger(pts)) throw wrong("its time is out of range");
  return {
    format, width, height, pts, seconds: (pts * numerator) / denominator, generation: view.getUint32(8, true),
    sequence: view.getUint32(12, true), payload: new Uint8Array(buffer, start, size),
  };
}

/**
 * The wait before try number `attempt` (from 0): 0.25 s, doubled each time up to 8 s, times a random factor from 0.5 to 1.
 * The factor keeps a server's clients from all returning at the same moment.
 * @param {number} attempt @param {() => number} [random] @returns {number} milliseconds
 */
export function retryDelayMs(attempt, random = Math.random) {
  return Math.min(LONGEST_WAIT_MS, FIRST_WAIT_MS * 2 ** Math.min(attempt, 16)) * (0.5 + 0.5 * random());
}

/** A filter of frames. It refuses old generations, frames out of order, and all frames in a pause. */
export class FrameGate {
  generation = -1;
  sequence = -1;
  paused = false;

  /** Start a new session, which counts from 0. */
  reset() {
    this.generation = this.sequence = -1;
  }

  /** Refuse frames of generations before this one. @param {number} generation */
  require(generation) {
    this.generation = Math.max(this.generation, generation);
  }

  /** @param {Header} header @returns {boolean} */
  accepts(header) {
    return !this.paused && header.generation >= this.generation && header.sequence > this.sequence;
  }

  /** Note that a frame is shown. @param {Header} header */
  pass(header) {
    this.require(header.generation);
    this.sequence = header.sequence;
  }
}

/**
 * Decode a payload, outside the page's thread if the browser can.
 * @param {Header} header @returns {Promise<ImageBitmap>}
 */
export async function decode(header) {
  const { format, width, height, payload } = header;
  if (format !== "raw") return createImageBitmap(new Blob([/** @type {any} */ (payload)], { type: `image/${format}` }));
  const pixels = new Uint8ClampedArray(width * height * 4).fill(255);
  for (let from = 0, to = 0; from < payload.length; from += 3, to += 4) {
    pixels[to] = payload[from];
    pixels[to + 1] = payload[from + 1];
    pixels[to + 2] = payload[from + 2];
  }
  return createImageBitmap(new ImageData(pixels, width, height));
}

/**
 * Why a WebSocket was refused. Browsers do not say, but a page of the same server can ask with a plain request.
 * @param {string} url @param {number} timeoutMs @returns {Promise<StreamError|null>}
 */
export async function whyRefused(url, timeoutMs) {
  const unreachable = new StreamError("unreachable", `${url} cannot be reached`, "check that the server runs");
  const here = globalThis.location;
  const address = new URL(url.replace(/^ws/, "http"));
  if (here === undefined || address.origin !== here.origin) return unreachable;
  try {
    const answer = await fetch(address, { cache: "no-store", signal: AbortSignal.timeout(timeoutMs) });
    const [message, remedy] = (await answer.text()).trim().split("; ");
    if (answer.status === 503) {
      return new StreamError(/clients/.test(message) ? "capacity" : "stopping", message, remedy ?? "try again later");
    }
    if (answer.status !== 426 && answer.status !== 400) return unreachable;
    return new StreamError("origin", `the server does not let a page of ${here.origin} connect`,
      `open it by its IP address, or start the server with --origin ${here.origin}`);
  } catch {
    return unreachable;
  }
}

/** A promise with its `resolve` and `reject`, and the time when it was made. */
export function deferred() {
  /** @type {any} */ const one = { at: performance.now() };
  one.promise = new Promise((resolve, reject) => Object.assign(one, { resolve, reject }));
  one.promise.catch(() => {}); // the caller may ignore it
  return one;
}

/** The settings among the values of a message. @param {any} values @returns {any} */
export function pick(values) {
  return Object.fromEntries(["fps", "size", "seed", "format", "quality"].filter((name) => values[name] !== undefined &&
    values[name] !== null).map((name) => [name, values[name]]));
}
