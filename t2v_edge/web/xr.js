/**
 * The stream in a headset (WebXR): a panel in the room or on the head, in immersive-vr and immersive-ar.
 *
 * The headset's loop never waits. Frames are decoded and captions drawn outside of it. The loop copies the newest picture
 * into a texture, once for each new one, and skips those between.
 *
 * @typedef {"vr"|"ar"} Mode
 * @typedef {"room"|"head"} Placement
 * @typedef {{bitmap: ImageBitmap, header: {generation: number, sequence: number}}} Shown
 */

import { Scene, drawCaption, inFrontOf, multiply, onHead } from "./xr-scene.js";

const SESSIONS = /** @type {const} */ ({ vr: "immersive-vr", ar: "immersive-ar" });
const RESTORE_MS = 4000; // for a lost WebGL context to come back

/**
 * The modes of this browser. reason: why there are none, and what helps.
 * @param {any} [xr] @param {boolean} [secure] @returns {Promise<{vr: boolean, ar: boolean, reason: string}>}
 */
export async function supportedModes(xr = /** @type {any} */ (globalThis.navigator)?.xr, secure = globalThis.isSecureContext) {
  const none = { vr: false, ar: false };
  if (!secure) return { ...none, reason: "A headset needs https or localhost: start the server with --tls-cert and --tls-key." };
  if (!xr) return { ...none, reason: "This browser has no WebXR. Open this page in a headset's browser, or in Chrome or Edge with a headset connected." };
  const ask = (/** @type {Mode} */ mode) => xr.isSessionSupported(SESSIONS[mode]).catch(() => false);
  const [vr, ar] = await Promise.all([ask("vr"), ask("ar")]);
  return { vr, ar, reason: vr || ar ? "" : "No headset is connected. Connect one, or open this page in a headset's browser." };
}

/** The panel, one session at a time. Events: `change` (`mode`, `placement`), `problem` (detail: text with the remedy). */
export class XRPanel extends EventTarget {
  /** @type {Mode|null} */ mode = null;
  /** The numbers of headset frames, copied pictures and skipped pictures, and the longest copy. */
  statistics = { frames: 0, uploads: 0, skipped: 0, longestUploadMs: 0 };

  #source; #canvas = /** @type {HTMLCanvasElement|null} */ (null); #gl = /** @type {WebGL2RenderingContext|null} */ (null);
  #scene = /** @type {Scene|null} */ (null); #session = /** @type {any} */ (null); #space = /** @type {any} */ (null);
  #floor = 0; #placement = /** @type {Placement} */ ("room"); #place = /** @type {Float32Array|null} */ (null);
  #drawn = ""; #sequence = -1; #text = ""; #caption = /** @type {ImageBitmap|null} */ (null); #starting = false;
  #captions = 0; #restore = /** @type {any} */ (null);

  /** @param {() => Shown|null} source  the newest frame, decoded */
  constructor(source) {
    super();
    this.#source = source;
  }

  get placement() {
    return this.#placement;
  }

  /** @param {Placement} placement */
  set placement(placement) {
    this.#placement = placement;
    this.#place = null; // placed before the viewer again
    this.#changed();
  }

  /** Write a caption under the panel. @param {string} text */
  async setCaption(text) {
    if (text === this.#text) return;
    this.#text = text;
    await this.#writeCaption();
  }

  /** Enter a mode. Call this from a click. Problems come as an event. @param {Mode} mode */
  async start(mode) {
    if (this.#session !== null || this.#starting) return;
    this.#starting = true;
    try {
      const session = await /** @type {any} */ (navigator).xr.requestSession(SESSIONS[mode], { optionalFeatures: ["local-floor"] });
      this.#session = session;
      this.mode = mode;
      this.#place = null;
      this.statistics = { frames: 0, uploads: 0, skipped: 0, longestUploadMs: 0 };
      session.addEventListener("end", () => this.#ended());
      session.addEventListener("select", () => this.#press(() => { this.placement = this.#placement === "room" ? "head" : "room"; }));
      session.addEventListener("squeeze", () => this.#press(() => { this.placement = "room"; }));
      await this.#open(session);
      this.#changed();
      session.requestAnimationFrame(this.#loop);
    } catch (error) {
      this.#problem(`${mode === "vr" ? "VR" : "AR"} does not start (${/** @type {Error} */ (error).message || error}). Put the headset on, allow it in the browser, and try again.`);
      await this.end();
    } finally {
      this.#starting = false;
    }
  }

  /** Leave. */
  async end() {
    try {
      await this.#session?.end();
    } catch {
      this.#ended(); // it had ended already
    }
  }

  /** @param {any} session */
  async #open(session) {
    if (this.#gl === null || this.#gl.isContextLost()) this.#makeContext();
    const gl = /** @type {any} */ (this.#gl);
    await gl.makeXRCompatible();
    try {
      this.#space = await session.requestReferenceSpace("local-floor");
      this.#floor = 0;
    } catch {
      this.#space = await session.requestReferenceSpace("local");
      this.#floor = -1.6; // its origin is about at the eyes
    }
    this.#space.addEventListener?.("reset", () => { this.#place = null; });
    this.#attach();
  }

  #makeContext() {
    const canvas = document.createElement("canvas");
    const gl = canvas.getContext("webgl2", { alpha: true, antialias: true, depth: false });
    if (gl === null) throw new Error("this browser has no WebGL2");
    canvas.addEventListener("webglcontextlost", (event) => {
      event.preventDefault(); // asks the browser to restore it
      if (gl !== this.#gl) return;
      this.#scene = null;
      clearTimeout(this.#restore);
      this.#restore = setTimeout(() => {
        this.#gl = null;
        if (this.#session === null) return;
        this.#problem("The headset's graphics were lost and did not come back. Enter again.");
        this.end();
      }, RESTORE_MS);
    });
    canvas.addEventListener("webglcontextrestored", async () => {
      clearTimeout(this.#restore);
      if (this.#session === null || gl !== this.#gl) return;
      await /** @type {any} */ (gl).makeXRCompatible();
      if (this.#session !== null) this.#attach();
    });
    [this.#canvas, this.#gl] = [canvas, gl];
    this.#scene = null;
  }

  /** Give the session its layer, and a new scene if the context is new. */
  #attach() {
    const gl = this.#gl;
    const Layer = /** @type {any} */ (globalThis).XRWebGLLayer;
    this.#scene ??= new Scene(/** @type {WebGL2RenderingContext} */ (gl));
    this.#drawn = "";
    this.#session.updateRenderState({ baseLayer: new Layer(this.#session, gl, { depth: false }) });
    this.#writeCaption();
  }

  /** Draw the caption, outside the loop. If captions overtake each other, the last one counts. */
  async #writeCaption() {
    if (this.#session === null) return;
    const number = ++this.#captions;
    const bitmap = await drawCaption(this.#text);
    if (number !== this.#captions) {
      bitmap?.close();
      return;
    }
    this.#caption?.close();
    this.#caption = bitmap;
  }

  /** @param {number} _time @param {any} frame */
  #loop = (_time, frame) => {
    const session = this.#session;
    if (session === null) return;
    session.requestAnimationFrame(this.#loop);
    const layer = session.renderState.baseLayer;
    const gl = this.#gl;
    const scene = this.#scene;
    if (gl === null || scene === null || gl.isContextLost() || !layer) return;
    this.statistics.frames += 1;
    this.#upload(scene);
    const pose = frame.getViewerPose(this.#space);
    gl.bindFramebuffer(gl.FRAMEBUFFER, layer.framebuffer);
    const opaque = session.environmentBlendMode === undefined ? this.mode === "vr" : session.environmentBlendMode === "opaque";
    gl.viewport(0, 0, layer.framebufferWidth, layer.framebufferHeight);
    scene.begin(opaque);
    if (!pose) return; // without tracking nothing can be placed
    const viewer = pose.transform.matrix;
    this.#place ??= inFrontOf(viewer);
    const panel = this.#placement === "head" ? onHead(viewer) : this.#place;
    for (const view of pose.views) {
      const { x, y, width, height } = layer.getViewport(view);
      gl.viewport(x, y, width, height);
      const toEye = multiply(view.projectionMatrix, view.transform.inverse.matrix);
      if (opaque) scene.drawFloor(toEye, this.#floor);
      scene.drawPanel(multiply(toEye, panel));
    }
  };

  /** Copy the newest frame and the caption if they are new. @param {Scene} scene */
  #upload(scene) {
    const shown = this.#source();
    if (shown !== null) {
      const { generation, sequence } = shown.header;
      const name = `${generation}.${sequence}`;
      if (name !== this.#drawn) {
        const start = performance.now();
        scene.setVideo(shown.bitmap);
        const statistics = this.statistics;
        statistics.longestUploadMs = Math.max(statistics.longestUploadMs, performance.now() - start);
        if (this.#drawn && sequence > this.#sequence) statistics.skipped += sequence - this.#sequence - 1;
        statistics.uploads += 1;
        this.#drawn = name;
        this.#sequence = sequence;
      }
    }
    if (this.#caption !== null) {
      scene.setCaption(this.#caption);
      this.#caption.close();
      this.#caption = null;
    }
  }

  /** Act on a press while the page has the headset's input. @param {() => void} act */
  #press(act) {
    if (this.#session?.visibilityState !== "hidden" && this.#session?.visibilityState !== "visible-blurred") act();
  }

  #ended() {
    if (this.#session === null) return;
    this.#session = this.#space = this.#place = null;
    this.mode = null;
    this.#caption?.close();
    this.#caption = null;
    this.#changed();
  }

  #changed() {
    this.dispatchEvent(new CustomEvent("change"));
  }

  /** @param {string} detail */
  #problem(detail) {
    this.dispatchEvent(new CustomEvent("problem", { detail }));
  }
}
