/** The page of `t2v-edge serve`: captions in, the stream out, on this page or in a headset. */

import { LiveStream, StreamError } from "./t2v-edge.js";
import { Speech, findRecognition, whyNoSpeech } from "./speech.js";
import { Screen, find, languageOf, showCaption, showChoice, showNumbers, showProblem, showState } from "./view.js";
import { XRPanel, supportedModes } from "./xr.js";

const EXAMPLES = [
  "a person is playing basketball", "a woman in a red shirt is dancing", "a man is waving his left hand",
  "a person is running", "一个人正在打篮球", "一个女人正在跳舞", "一个人在挥手",
];
const RATES = [16, 24, 30, 60, 72, 90].map((rate) => ({ value: String(rate), label: `${rate} fps` }));
const PICTURES = [
  { value: "jpeg 95", label: "Best (JPEG 95)" }, { value: "jpeg 85", label: "Good (JPEG 85)" },
  { value: "jpeg 60", label: "Small (JPEG 60)" }, { value: "webp 70", label: "Smallest (WebP 70)" },
  { value: "raw", label: "Exact (raw)" },
];
const NUMBERS_MS = 500;
const TOKEN = "t2v-edge token";

const address = new URL("live", location.href);
address.protocol = address.protocol.replace("http", "ws");
address.search = address.hash = "";

let token = readToken();
let welcomed = false;
const stream = new LiveStream(address, { token: token || undefined });
const screen = new Screen(() => stream.frame);
const panel = new XRPanel(() => stream.frame);
const input = /** @type {HTMLInputElement} */ (find("caption-text"));
const buttons = { vr: find("enter-vr"), ar: find("enter-ar") };

// The token is kept until the tab is closed, and only after the server accepted it.

function readToken() {
  try {
    return sessionStorage.getItem(TOKEN) ?? "";
  } catch {
    return ""; // storage is off
  }
}

function keepToken() {
  try {
    if (token) sessionStorage.setItem(TOKEN, token);
  } catch { /* storage is off: the page asks again */ }
}

// The connection.

function connect() {
  stream.connect().catch(() => {}); // the event says it
}

stream.addEventListener("state", () => {
  const { state, error } = stream;
  if (state === "open") {
    welcomed = true;
    keepToken();
    find("token-form").hidden = true;
    find("bundle").textContent = stream.welcome.bundle;
    showProblem("", "");
  } else if (state === "refused" && error?.code === "token") {
    const form = find("token-form");
    form.hidden = false;
    showProblem(token ? "The server does not take this token" : "This server asks for a token", "Enter it below");
    find("token").focus();
  } else if (error !== null) {
    showProblem(error.message, state === "refused" ? error.remedy : `${error.remedy}; this page tries again by itself`,
      state === "refused" ? "Try again" : "Try now");
  }
  for (const id of ["pause", "reset", "rate", "picture", "seed"]) /** @type {any} */ (find(id)).disabled = state !== "open";
  showState(state, stream.paused, welcomed || error !== null);
  caption();
});

find("retry").addEventListener("click", () => {
  if (stream.state === "waiting") stream.retry();
  else if (stream.state === "refused") connect();
  input.focus(); // the button disappears
});

find("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = /** @type {HTMLInputElement} */ (find("token")).value.trim();
  stream.token = token;
  connect();
  input.focus();
});

stream.addEventListener("problem", (event) => report(/** @type {CustomEvent} */ (event).detail));

/** @param {any} error */
function report(error) {
  if (error instanceof StreamError) {
    if (stream.state === "open") showProblem(error.message, error.remedy);
  } else showProblem(String(error?.message ?? error), "");
}

// Captions.

/** Show the caption in all its places. */
function caption() {
  if (stream.shown) showCaption(stream.shown);
  panel.setCaption(stream.state === "open" || !welcomed ? stream.shown : `${stream.shown} (trying to reconnect)`);
}

stream.addEventListener("showing", () => {
  if (stream.state === "open") showProblem("", "");
  caption();
});

find("caption-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = input.value.trim();
  if (!text) return;
  stream.caption(text);
  input.select(); // the next text replaces it
});

for (const kind of ["input", "compositionend"]) {
  input.addEventListener(kind, (event) => {
    const text = input.value.trim();
    input.lang = languageOf(text);
    const composing = /** @type {any} */ (event).isComposing; // a word of Chinese that is still being spelled
    if (text && !composing && /** @type {HTMLInputElement} */ (find("while-typing")).checked) {
      stream.caption(text, { final: false });
    }
  });
}

for (const text of EXAMPLES) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  Object.assign(button, { type: "button", textContent: text, lang: languageOf(text) });
  button.addEventListener("click", () => {
    input.value = text;
    stream.caption(text);
  });
  item.append(button);
  find("examples").append(item);
}

// Speech.

const speak = find("speak");
const language = /** @type {HTMLSelectElement} */ (find("language"));
const without = whyNoSpeech();
const VENDOR = "Your browser may send what you say to its maker to be recognised.";
find("speech-note").textContent = without || VENDOR;
find("speech").hidden = without !== "";
if (!without) {
  if (/^zh/.test(navigator.language)) language.value = "zh-CN";
  const speech = new Speech((text, final) => {
    input.value = text;
    input.lang = languageOf(text);
    stream.caption(text, { final });
  }, (listening, problem) => {
    speak.textContent = listening ? "Stop listening" : "Speak";
    speak.setAttribute("aria-pressed", String(listening));
    find("speech-note").textContent = problem || VENDOR;
    if (problem) showProblem(problem, "");
  }, findRecognition());
  speak.addEventListener("click", () => (speech.listening ? speech.stop() : speech.start(language.value)));
  language.addEventListener("change", () => speech.listening && speech.start(language.value));
}

// Playback and settings.

find("pause").addEventListener("click", () => (stream.paused ? stream.resume() : stream.pause()).catch(report));
find("reset").addEventListener("click", () => stream.reset().catch(report));

/** @param {string} id @param {(value: string) => Promise<any>} act */
function onChoice(id, act) {
  const field = /** @type {HTMLInputElement} */ (find(id));
  field.addEventListener("change", () => {
    if (field.reportValidity()) act(field.value).catch((error) => { report(error); settings(); });
  });
}

onChoice("rate", (fps) => stream.set({ fps: /^\d+$/.test(fps) ? Number(fps) : fps }));
onChoice("seed", (seed) => stream.reset(Number(seed)));
onChoice("picture", (picture) => {
  const [format, quality] = picture.split(" ");
  return stream.set({ format: /** @type {any} */ (format), quality: quality ? Number(quality) : undefined });
});

function settings() {
  const { fps, format, quality, seed } = stream.settings;
  const picture = format === "raw" ? format : `${format} ${quality}`;
  showChoice(/** @type {any} */ (find("rate")), RATES, String(fps), `${fps} fps`);
  showChoice(/** @type {any} */ (find("picture")), PICTURES, picture, `${format?.toUpperCase()} ${quality}`);
  /** @type {HTMLInputElement} */ (find("seed")).value = String(seed);
  find("pause").textContent = stream.paused ? "Resume" : "Pause";
  showState(stream.state, stream.paused, false);
}

stream.addEventListener("settings", settings);
stream.addEventListener("frame", () => screen.update());
setInterval(() => {
  if (!document.hidden) showNumbers(stream.statistics, stream.state === "open");
}, NUMBERS_MS);

// The headset.

async function lookForHeadset() {
  const modes = await supportedModes();
  buttons.vr.hidden = !modes.vr;
  buttons.ar.hidden = !modes.ar;
  find("placement").hidden = Boolean(modes.reason);
  find("headset-note").textContent = modes.reason ||
    "In the headset, the trigger moves the picture between room and head, and the grip puts it before you.";
}

for (const mode of /** @type {("vr"|"ar")[]} */ (["vr", "ar"])) {
  buttons[mode].addEventListener("click", () => (panel.mode === null ? panel.start(mode) : panel.end()));
}

for (const radio of /** @type {NodeListOf<HTMLInputElement>} */ (document.querySelectorAll("[name=placement]"))) {
  radio.addEventListener("change", () => { panel.placement = /** @type {any} */ (radio.value); });
}

panel.addEventListener("change", () => {
  for (const mode of /** @type {("vr"|"ar")[]} */ (["vr", "ar"])) {
    buttons[mode].textContent = `${panel.mode === mode ? "Leave" : "Enter"} ${mode.toUpperCase()}`;
  }
  for (const radio of /** @type {NodeListOf<HTMLInputElement>} */ (document.querySelectorAll("[name=placement]"))) {
    radio.checked = radio.value === panel.placement;
  }
});
panel.addEventListener("problem", (event) => showProblem(/** @type {CustomEvent} */ (event).detail, ""));
/** @type {any} */ (navigator).xr?.addEventListener?.("devicechange", lookForHeadset);

screen.hasPicture = false;
showState("connecting", false, false);
lookForHeadset();
connect();
