/**
 * Captions from the browser's speech recognition. Its guesses are partial captions, its results final ones.
 *
 * @typedef {(text: string, final: boolean) => void} OnCaption
 * @typedef {(listening: boolean, problem: string) => void} OnChange  problem: what is wrong and what to do, or ""
 */

const REASONS = /** @type {Record<string, string>} */ ({
  "not-allowed": "The microphone is not allowed: allow it for this page in the browser, and press Speak again.",
  "service-not-allowed": "This browser does not allow its speech recognition here; type instead.",
  "audio-capture": "There is no microphone: connect one, and press Speak again.",
  "network": "The browser's speech recognition cannot reach its service; type instead.",
  "language-not-supported": "This browser does not recognise this language; choose the other one.",
});
const SHORT_MS = 1000; // recognition that ends sooner three times in a row is given up
const TRIES = 3;

/** The browser's recogniser, or null. @param {any} [scope] */
export function findRecognition(scope = globalThis) {
  return scope.SpeechRecognition ?? scope.webkitSpeechRecognition ?? null;
}

/** Why speech recognition cannot be used, or "". @param {any} [scope] @returns {string} */
export function whyNoSpeech(scope = globalThis) {
  if (findRecognition(scope) === null) return "Speaking needs a browser with speech recognition, as Chrome, Edge and Safari have.";
  if (scope.isSecureContext === false) return "Speaking needs https or localhost: start the server with --tls-cert and --tls-key.";
  return "";
}

/**
 * A converter of a recogniser's results to captions. Each final result is one caption. The others make one partial
 * caption together, because recognisers cut a sentence into several guesses.
 */
export class Transcript {
  #done = 0;
  #partial = "";

  /** Start a new recognition, whose results count from 0. */
  restart() {
    this.#done = 0;
    this.#partial = "";
  }

  /** @param {ArrayLike<ArrayLike<{transcript: string}> & {isFinal: boolean}>} results @returns {{text: string, final: boolean}[]} */
  read(results) {
    const captions = [];
    let partial = "";
    for (let index = this.#done; index < results.length; index += 1) {
      const text = results[index][0].transcript.trim();
      if (results[index].isFinal && index === this.#done) {
        this.#done += 1;
        if (text) captions.push({ text, final: true });
        this.#partial = "";
      } else if (text) {
        partial += (partial && !/[\u3400-\u9fff]$/.test(partial) ? " " : "") + text;
      }
    }
    if (partial && partial !== this.#partial) captions.push({ text: partial, final: false });
    this.#partial = partial;
    return captions;
  }
}

/** A listener. Recognisers end by themselves after a silence; this one starts them again until `stop`. */
export class Speech {
  listening = false;
  #recognition = /** @type {any} */ (null);
  #transcript = new Transcript();
  #short = 0;

  /** @param {OnCaption} onCaption @param {OnChange} onChange @param {any} [Recognition] */
  constructor(onCaption, onChange, Recognition = findRecognition()) {
    this.onCaption = onCaption;
    this.onChange = onChange;
    this.Recognition = Recognition;
  }

  /** @param {string} language  en-US, zh-CN */
  start(language) {
    if (this.listening) this.stop();
    this.listening = true;
    this.#short = 0;
    this.#begin(language);
    this.onChange(true, "");
  }

  stop(problem = "") {
    this.listening = false;
    const recognition = this.#recognition;
    this.#recognition = null;
    try {
      recognition?.stop();
    } catch { /* it had ended */ }
    this.onChange(false, problem);
  }

  /** @param {string} language */
  #begin(language) {
    const recognition = new this.Recognition();
    const began = performance.now();
    Object.assign(recognition, { lang: language, continuous: true, interimResults: true, maxAlternatives: 1 });
    this.#transcript.restart();
    this.#recognition = recognition;
    recognition.onresult = (/** @type {any} */ event) => {
      if (recognition !== this.#recognition) return;
      this.#short = 0;
      for (const { text, final } of this.#transcript.read(event.results)) this.onCaption(text, final);
    };
    recognition.onerror = (/** @type {any} */ event) => {
      const problem = REASONS[event.error];
      if (recognition === this.#recognition && problem) this.stop(problem); // silence and abort are not problems
    };
    recognition.onend = () => {
      if (recognition !== this.#recognition) return;
      this.#short = performance.now() - began < SHORT_MS ? this.#short + 1 : 0;
      if (this.#short >= TRIES) this.stop("Speech recognition ends at once; press Speak again, or type.");
      else this.#begin(language);
    };
    try {
      recognition.start();
    } catch (error) {
      this.stop(`Speech recognition does not start (${error}); type instead.`);
    }
  }
}
