/**
 * The scene in a headset, drawn with WebGL2: the stream as a panel, its caption under it, and a floor.
 *
 * Lengths are metres. Matrices have 16 numbers, by columns, as in WebXR.
 */

export const DISTANCE = 1.6;
export const PANEL_HEIGHT = 1.25;
const CAPTION = { width: 1.5, height: 0.3, gap: 0.06, pixels: [1280, 256] };
const RADIUS = 0.04;
const FLOOR = 12;

const VERTEX = `#version 300 es
uniform mat4 u_matrix;
uniform vec2 u_size, u_centre;
out vec2 v_at;
void main() {
  vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1);
  v_at = vec2(corner.x, 1.0 - corner.y);
  gl_Position = u_matrix * vec4((corner - 0.5) * u_size + u_centre, 0.0, 1.0);
}`;

// Colours are premultiplied, as a headset needs them to blend with the room.
const PANEL = `#version 300 es
precision highp float;
uniform sampler2D u_image;
uniform vec2 u_size;
uniform float u_radius;
in vec2 v_at;
out vec4 colour;
void main() {
  vec2 beyond = abs(v_at - 0.5) * u_size - 0.5 * u_size + u_radius;
  float distance = length(max(beyond, 0.0)) + min(max(beyond.x, beyond.y), 0.0) - u_radius;
  float edge = fwidth(distance);
  colour = texture(u_image, v_at) * (1.0 - smoothstep(-edge, edge, distance));
}`;

const GROUND = `#version 300 es
precision highp float;
uniform vec2 u_size;
in vec2 v_at;
out vec4 colour;
void main() {
  vec2 at = (v_at - 0.5) * u_size;
  vec2 near = abs(fract(at - 0.5) - 0.5) / fwidth(at);
  float line = 1.0 - min(min(near.x, near.y), 1.0);
  float fade = 1.0 - smoothstep(1.0, 0.5 * u_size.x, length(at));
  colour = vec4(0.35, 0.45, 0.6, 1.0) * line * fade * 0.55;
}`;

/** @param {ArrayLike<number>} a @param {ArrayLike<number>} b @returns {Float32Array} a times b */
export function multiply(a, b) {
  const out = new Float32Array(16);
  for (let column = 0; column < 4; column += 1) {
    for (let row = 0; row < 4; row += 1) {
      let sum = 0;
      for (let k = 0; k < 4; k += 1) sum += a[4 * k + row] * b[4 * column + k];
      out[4 * column + row] = sum;
    }
  }
  return out;
}

/** A place in front of a viewer, upright, at eye level, facing them. @param {ArrayLike<number>} viewer @returns {Float32Array} */
export function inFrontOf(viewer) {
  let [x, z] = [-viewer[8], -viewer[10]];
  if (Math.hypot(x, z) < 0.2) [x, z] = [viewer[4] * Math.sign(viewer[9]), viewer[6] * Math.sign(viewer[9])]; // up or down
  const length = Math.hypot(x, z) || 1;
  [x, z] = [x / length, z / length];
  return new Float32Array([-z, 0, x, 0, 0, 1, 0, 0, -x, 0, -z, 0,
    viewer[12] + x * DISTANCE, viewer[13], viewer[14] + z * DISTANCE, 1]);
}

/** A place before the eyes that moves with the head. @param {ArrayLike<number>} viewer @returns {Float32Array} */
export function onHead(viewer) {
  return multiply(viewer, [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, -DISTANCE, 1]);
}

/** A scene. It lives as long as its context. */
export class Scene {
  #gl; #panel; #ground; #video; #caption; #empty;
  #size = [0, 0];
  #hasCaption = false;

  /** @param {WebGL2RenderingContext} gl */
  constructor(gl) {
    this.#gl = gl;
    this.#panel = makeProgram(gl, PANEL);
    this.#ground = makeProgram(gl, GROUND);
    this.#video = makeTexture(gl);
    this.#caption = makeTexture(gl);
    this.#empty = gl.createVertexArray(); // corners are made in the shader
    gl.texStorage2D(gl.TEXTURE_2D, 1, gl.RGBA8, CAPTION.pixels[0], CAPTION.pixels[1]);
  }

  /** Copy a frame's pixels. @param {ImageBitmap} bitmap  decoded, so this does not wait */
  setVideo(bitmap) {
    const gl = this.#gl;
    const { width, height } = bitmap;
    if (this.#size[0] !== width || this.#size[1] !== height) {
      gl.deleteTexture(this.#video);
      this.#video = makeTexture(gl);
      gl.texStorage2D(gl.TEXTURE_2D, 1, gl.RGBA8, width, height);
      this.#size = [width, height];
    }
    gl.bindTexture(gl.TEXTURE_2D, this.#video);
    gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
  }

  /** @param {ImageBitmap} bitmap  of `drawCaption` */
  setCaption(bitmap) {
    const gl = this.#gl;
    gl.bindTexture(gl.TEXTURE_2D, this.#caption);
    gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, gl.RGBA, gl.UNSIGNED_BYTE, bitmap);
    this.#hasCaption = true;
  }

  /** Clear the frame. @param {boolean} opaque  false if the room is visible behind */
  begin(opaque) {
    const gl = this.#gl;
    gl.clearColor(opaque ? 0.035 : 0, opaque ? 0.045 : 0, opaque ? 0.065 : 0, opaque ? 1 : 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.disable(gl.DEPTH_TEST); // drawn from far to near
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.bindVertexArray(this.#empty);
  }

  /** @param {ArrayLike<number>} view  from the room to the eye's picture @param {number} height  of the floor */
  drawFloor(view, height) {
    const floor = multiply(view, [1, 0, 0, 0, 0, 0, -1, 0, 0, 1, 0, 0, 0, height, 0, 1]);
    this.#quad(this.#ground, floor, [FLOOR, FLOOR], [0, 0]);
  }

  /** @param {Float32Array} matrix  from the panel to the eye's picture */
  drawPanel(matrix) {
    const gl = this.#gl;
    const aspect = this.#size[1] ? this.#size[0] / this.#size[1] : 1;
    gl.activeTexture(gl.TEXTURE0);
    if (this.#size[1]) {
      gl.bindTexture(gl.TEXTURE_2D, this.#video);
      this.#quad(this.#panel, matrix, [PANEL_HEIGHT * aspect, PANEL_HEIGHT], [0, 0.1], RADIUS);
    }
    if (this.#hasCaption) {
      gl.bindTexture(gl.TEXTURE_2D, this.#caption);
      const below = 0.1 - PANEL_HEIGHT / 2 - CAPTION.gap - CAPTION.height / 2;
      this.#quad(this.#panel, matrix, [CAPTION.width, CAPTION.height], [0, below], 0.001);
    }
  }

  /** @param {any} program @param {Float32Array} matrix @param {number[]} size @param {number[]} centre */
  #quad(program, matrix, size, centre, radius = 0) {
    const gl = this.#gl;
    gl.useProgram(program.program);
    gl.uniformMatrix4fv(program.u_matrix, false, matrix);
    gl.uniform2f(program.u_size, size[0], size[1]);
    gl.uniform2f(program.u_centre, centre[0], centre[1]);
    gl.uniform1f(program.u_radius, radius); // a location of null is ignored
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
  }
}

/**
 * A caption as a picture: white on dark, in at most three lines.
 * @param {string} text @returns {Promise<ImageBitmap|null>}  null without a 2D canvas
 */
export async function drawCaption(text) {
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d");
  [canvas.width, canvas.height] = CAPTION.pixels;
  if (context === null) return null;
  let size = 68;
  let lines = /** @type {string[]} */ ([]);
  for (; size >= 32; size -= 6) {
    context.font = `600 ${size}px system-ui, "Noto Sans", "Noto Sans CJK SC", sans-serif`;
    lines = wrap(text, (line) => context.measureText(line).width <= canvas.width - 96);
    if (lines.length * size * 1.2 <= canvas.height - 32) break;
  }
  lines = lines.slice(0, Math.floor((canvas.height - 32) / (Math.max(size, 32) * 1.2)));
  if (lines.length > 0) {
    const width = Math.max(...lines.map((line) => context.measureText(line).width)) + 80;
    const height = lines.length * size * 1.2 + 32;
    context.fillStyle = "rgba(12, 16, 21, 0.82)";
    context.beginPath();
    context.roundRect((canvas.width - width) / 2, 0, width, height, 32);
    context.fill();
    context.fillStyle = "#ffffff";
    context.textAlign = "center";
    context.textBaseline = "middle";
    lines.forEach((line, index) => context.fillText(line, canvas.width / 2, 16 + (index + 0.5) * size * 1.2));
  }
  return createImageBitmap(canvas);
}

/**
 * Break a text into lines: at spaces, and between Chinese and Japanese characters.
 * @param {string} text @param {(line: string) => boolean} fits @returns {string[]}
 */
export function wrap(text, fits) {
  const lines = [];
  let line = "";
  for (const piece of text.match(/[\u3000-\u9fff\uff00-\uffef]|[^\s\u3000-\u9fff\uff00-\uffef]+|\s+/g) ?? []) {
    if (line.trim() && !fits((line + piece).trimEnd())) {
      lines.push(line.trim());
      line = "";
    }
    line += piece;
  }
  if (line.trim()) lines.push(line.trim());
  return lines;
}

/** @param {WebGL2RenderingContext} gl @param {string} fragment */
function makeProgram(gl, fragment) {
  const program = /** @type {WebGLProgram} */ (gl.createProgram());
  for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = /** @type {WebGLShader} */ (gl.createShader(Number(kind)));
    gl.shaderSource(shader, String(source));
    gl.compileShader(shader);
    gl.attachShader(program, shader);
    gl.deleteShader(shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) {
    throw new Error(`this browser's WebGL2 does not take a shader: ${gl.getProgramInfoLog(program)}`);
  }
  const places = ["u_matrix", "u_size", "u_centre", "u_radius"].map((name) => [name, gl.getUniformLocation(program, name)]);
  return { program, ...Object.fromEntries(places) };
}

/** A texture, bound. @param {WebGL2RenderingContext} gl */
function makeTexture(gl) {
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  for (const [name, value] of [[gl.TEXTURE_MIN_FILTER, gl.LINEAR], [gl.TEXTURE_MAG_FILTER, gl.LINEAR],
    [gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE], [gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE]]) {
    gl.texParameteri(gl.TEXTURE_2D, name, value);
  }
  return texture;
}
