/** The view of the page: texts, numbers and the picture. It decides nothing. */

const STATES = /** @type {Record<string, string>} */ ({
  closed: "Closed", connecting: "Connecting", open: "Live", waiting: "Trying again", refused: "Not connected",
});
const QUIET_MS = 1500; // a screen reader reads a caption when it has stayed this long

/** @template {HTMLElement} T @param {string} id @returns {T} */
export function find(id) {
  return /** @type {any} */ (document.getElementById(id));
}

/** zh for text with Chinese characters, else en. It selects the voice and the font. @param {string} text */
export function languageOf(text) {
  return /[\u3400-\u9fff]/.test(text) ? "zh" : "en";
}

/** A number with its unit, or a dash. @param {number|null} value @param {string} unit */
export function withUnit(value, unit, digits = 0) {
  return value === null || Number.isNaN(value) ? "–" : `${value.toFixed(digits)} ${unit}`.trim();
}

/** Write a text if it changed, or a screen reader reads it again. @param {HTMLElement} element @param {string} text */
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** The canvas. It draws the newest frame when the browser draws. */
export class Screen {
  #canvas = /** @type {HTMLCanvasElement} */ (find("video"));
  #context = /** @type {CanvasRenderingContext2D} */ (this.#canvas.getContext("2d", { alpha: false }));
  #asked = false;

  /** @param {() => {bitmap: ImageBitmap}|null} source */
  constructor(source) {
    this.source = source;
  }

  /** Draw the new frame. */
  update() {
    if (this.#asked) return;
    this.#asked = true;
    requestAnimationFrame(() => {
      this.#asked = false;
      const frame = this.source();
      if (frame === null) return;
      const { width, height } = frame.bitmap;
      if (this.#canvas.width !== width || this.#canvas.height !== height) {
        [this.#canvas.width, this.#canvas.height] = [width, height];
      }
      this.#context.drawImage(frame.bitmap, 0, 0);
      this.hasPicture = true;
    });
  }

  /** @param {boolean} has */
  set hasPicture(has) {
    find("hint").hidden = has;
    this.#canvas.parentElement?.classList.toggle("empty", !has);
  }
}

/** Show the connection's state. @param {string} state @param {boolean} paused @param {boolean} again  connected before */
export function showState(state, paused, again) {
  const shown = state === "connecting" && again ? "waiting" : state;
  find("state").dataset.state = shown;
  write(find("state-text"), shown === "open" && paused ? "Paused" : STATES[shown]);
}

/** Show a problem and its remedy, "" for none. @param {string} message @param {string} remedy @param {string} [button] */
export function showProblem(message, remedy, button = "") {
  find("problem").hidden = !message;
  write(find("problem-message"), sentence(message));
  write(find("problem-remedy"), sentence(remedy));
  find("retry").hidden = !button;
  write(find("retry"), button);
}

let quiet = 0;

/** Show the caption under the picture. A screen reader reads it when it stays. @param {string} text */
export function showCaption(text) {
  const shown = find("shown");
  write(shown, text);
  shown.lang = languageOf(text);
  find("video").setAttribute("aria-label", `Video: ${text}`);
  find("video").lang = shown.lang;
  clearTimeout(quiet);
  quiet = window.setTimeout(() => {
    const announcer = find("announcer");
    announcer.lang = shown.lang;
    write(announcer, text);
  }, QUIET_MS);
}

/** @param {any} statistics  of a `LiveStream` @param {boolean} live */
export function showNumbers(statistics, live) {
  const { fps, latencyMs, roundTripMs, overtaken, missed, bytesPerS } = statistics;
  write(find("fps"), live ? withUnit(fps, "fps", 1) : "–");
  write(find("latency"), withUnit(latencyMs, "ms"));
  write(find("round-trip"), withUnit(live ? roundTripMs : null, "ms", roundTripMs < 10 ? 1 : 0));
  write(find("dropped"), String(overtaken + missed));
  write(find("data"), live ? withUnit(bytesPerS / 1000, "kB/s") : "–");
}

/** Show choices and the present one, which may be another. @param {HTMLSelectElement} select
 * @param {{value: string, label: string}[]} choices @param {string} value @param {string} label */
export function showChoice(select, choices, value, label) {
  const all = choices.some((one) => one.value === value) ? choices : [{ value, label }, ...choices];
  if (select.dataset.choices !== JSON.stringify(all)) {
    select.replaceChildren(...all.map((one) => new Option(one.label, one.value)));
    select.dataset.choices = JSON.stringify(all);
  }
  select.value = value;
}

/** @param {string} text */
function sentence(text) {
  return !text || /[.!?。]$/.test(text) ? text : `${text}.`;
}
