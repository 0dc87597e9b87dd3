/** A live stream as a texture: give it to any material, and call `update` before each render. */

import * as THREE from "three";

export class StreamTexture extends THREE.Texture {
  #stream; #shown = null; #size = "";

  /** @param {import("t2v-edge").LiveStream} stream */
  constructor(stream) {
    super();
    this.#stream = stream;
    this.colorSpace = THREE.SRGBColorSpace;
    this.generateMipmaps = false;
    this.minFilter = THREE.LinearFilter;
    // Rows come from the top, and browsers do not turn an ImageBitmap over on its way up: the coordinates are turned.
    this.flipY = false;
    this.repeat.set(1, -1);
    this.offset.set(0, 1);
  }

  /** Take the newest frame, which is decoded already; whether there was one. Never waits. */
  update() {
    const frame = this.#stream.frame;
    if (frame === null || frame === this.#shown) return false;
    const size = `${frame.bitmap.width}x${frame.bitmap.height}`;
    if (size !== this.#size) this.dispose(); // what is on the GPU keeps its size
    this.#size = size;
    this.#shown = frame;
    this.image = frame.bitmap; // open until the next frame comes, which is not before this render is done
    this.needsUpdate = true;
    return true;
  }
}
