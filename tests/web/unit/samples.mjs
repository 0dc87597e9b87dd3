/** A frame by hand, and a socket that is none. */

export const WEB = new URL("../../../t2v_edge/web/", import.meta.url);

/** @returns {ArrayBuffer} a frame of docs/protocol.md */
export function frame({ format = 1, generation = 0, sequence = 0, pts = 0, num = 1, den = 30, width = 4, height = 2,
  payload = new Uint8Array([1, 2, 3]), headerBytes = 40, version = 1, magic = "T2VF", size = payload.length } = {}) {
  const buffer = new ArrayBuffer(headerBytes + payload.length);
  const view = new DataView(buffer);
  [...magic].forEach((letter, index) => view.setUint8(index, letter.charCodeAt(0)));
  view.setUint8(4, version);
  view.setUint8(5, format);
  view.setUint16(6, headerBytes, true);
  view.setUint32(8, generation, true);
  view.setUint32(12, sequence, true);
  view.setBigUint64(16, BigInt(pts), true);
  view.setUint32(24, num, true);
  view.setUint32(28, den, true);
  view.setUint16(32, width, true);
  view.setUint16(34, height, true);
  view.setUint32(36, size, true);
  new Uint8Array(buffer, headerBytes).set(payload);
  return buffer;
}

export const WELCOME = { type: "welcome", version: 1, session: "a", bundle: "tiny", base_fps: 16, fps: 30, size: [4, 2],
  seed: 0, format: "jpeg", quality: 85 };

/** Sockets that were opened, in order; each keeps what was sent and is answered by hand. */
export function sockets() {
  const opened = [];
  class Fake {
    constructor(url) {
      this.url = url;
      this.readyState = 0;
      this.sent = [];
      opened.push(this);
    }

    send(text) { this.sent.push(JSON.parse(text)); }

    close() { this.readyState = 3; }

    open() { this.readyState = 1; this.onopen(); }

    say(message) { this.onmessage({ data: message instanceof ArrayBuffer ? message : JSON.stringify(message) }); }

    lose(code = 1006, reason = "") { this.readyState = 3; this.onclose({ code, reason }); }

    /** Open, and be welcomed. */
    welcome(more = {}) { this.open(); this.say({ ...WELCOME, ...more }); }

    last(type) { return this.sent.filter((message) => message.type === type).at(-1); }
  }
  return { Fake, opened };
}

/** A decoder whose results come when the test says so. */
export function decoder() {
  const waiting = [];
  const bitmaps = [];
  return {
    waiting, bitmaps,
    decode: (header) => new Promise((resolve, reject) => waiting.push({
      header, reject, done: () => {
        const bitmap = { header, closed: false, close() { this.closed = true; } };
        bitmaps.push(bitmap);
        resolve(bitmap);
      },
    })),
  };
}

/** Let promises go on. */
export const turn = () => new Promise((resolve) => setImmediate(resolve));

export async function until(condition, ms = 5000) {
  const end = Date.now() + ms;
  while (!condition()) {
    if (Date.now() > end) throw new Error(`it did not come: ${condition}`);
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
