/**
 * A real Chromium with the page in it. A scenario says what it does and what it expects; here is what all of them need:
 * no console errors, no request to anything but the page's own server.
 */

import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import path from "node:path";
import { createInterface } from "node:readline";

const MODULES = process.env.T2V_EDGE_NODE_MODULES;
const { chromium } = createRequire(path.join(MODULES, "any.js"))("playwright-core");
const WAIT_MS = 30000; // for what should happen soon: generous, because machines that test are busy

export const [url, folder] = process.argv.slice(2);

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

/** Have the test do something, and wait for it. */
export async function ask(what) {
  process.stdout.write(`${JSON.stringify({ ask: what })}\n`);
  await lines.next();
}

/** Run a scenario. @param {object} options  quest: with an emulated Quest 3; network: errors of the
 * network are expected; ignore: which other errors are not the page's */
export async function scenario({ quest = false, network = false, ignore = () => false, before = () => {}, context: more = {} }, work) {
  const profile = mkdtempSync(path.join(tmpdir(), "t2v-edge-page-"));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM, headless: true, viewport: { width: 1280, height: 640 },
    ignoreHTTPSErrors: true, ...more,
    args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
      "--disable-component-update", "--disable-sync", "--use-angle=swiftshader", "--enable-unsafe-swiftshader",
      "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
  });
  try {
    context.setDefaultTimeout(WAIT_MS);
    if (quest) {
      await context.addInitScript({ path: path.join(MODULES, "iwer/build/iwer.min.js") });
      await context.addInitScript(() => {
        globalThis.quest = new IWER.XRDevice(IWER.metaQuest3, { stereoEnabled: true });
        globalThis.quest.installRuntime({ forceInstall: true });
      });
    }
    const page = context.pages()[0];
    const errors = [];
    const sent = [];
    const hosts = new Set();
    watch(page, errors, sent, hosts);
    await before(page, context);
    await page.goto(url);
    const said = await work(page, { context, sent, watch: (another) => watch(another, errors, sent, hosts) });
    const unexpected = errors.filter((text) => !ignore(text) && !(network && /WebSocket connection|Failed to load resource|net::/.test(text)));
    assert.deepEqual(unexpected, [], "errors in the console");
    assert.deepEqual([...hosts], [new URL(url).host], "all requests stay with the server");
    process.stdout.write(`${JSON.stringify({ done: said ?? {} })}\n`);
  } finally {
    await context.close();
    rmSync(profile, { recursive: true, force: true });
  }
  process.exit(0);
}

function watch(page, errors, sent, hosts) {
  page.on("console", (message) => { if (message.type() === "error") errors.push(message.text()); });
  page.on("pageerror", (error) => errors.push(error.stack ?? String(error)));
  page.on("request", (request) => { if (/^https?:|^wss?:/.test(request.url())) hosts.add(new URL(request.url()).host); });
  page.on("websocket", (socket) => {
    hosts.add(new URL(socket.url()).host);
    socket.on("framesent", ({ payload }) => sent.push(JSON.parse(String(payload))));
  });
}

/** Wait until `ready` gives something, and give it. */
export async function until(what, ready) {
  const end = Date.now() + WAIT_MS;
  for (;;) {
    const value = await ready();
    if (value) return value;
    if (Date.now() > end) throw new Error(`it did not come: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

export const text = (page, id) => page.locator(`#${id}`).textContent();

/** What the server is said to be: Live, Paused, Trying again. */
export const state = (page, wanted) => until(wanted, async () => (await text(page, "state-text")) === wanted);

/** The pixels of the video, as RGBA bytes in a row. */
export async function picture(page) {
  return page.evaluate(() => {
    const canvas = document.getElementById("video");
    return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
  });
}

/** Pixels of a screenshot, as {width, height, at(x, y) -> [r, g, b]}. */
export async function screenshot(page, name) {
  const bytes = await page.screenshot(name ? { path: path.join(folder, name) } : {});
  const { width, height, data } = await page.evaluate(async (encoded) => {
    const binary = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
    const bitmap = await createImageBitmap(new Blob([binary], { type: "image/png" }));
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
    const context = canvas.getContext("2d");
    context.drawImage(bitmap, 0, 0);
    const pixels = context.getImageData(0, 0, bitmap.width, bitmap.height).data;
    let text = "";
    for (let at = 0; at < pixels.length; at += 32768) text += String.fromCharCode(...pixels.subarray(at, at + 32768));
    return { width: bitmap.width, height: bitmap.height, data: btoa(text) };
  }, bytes.toString("base64"));
  const pixels = Buffer.from(data, "base64");
  return { width, height, at: (x, y) => [...pixels.subarray(4 * (y * width + x), 4 * (y * width + x) + 3)] };
}

/** Which of the known colours a pixel has. */
export function colourOf([r, g, b]) {
  if (r > 150 && g > 150 && b > 150) return "white";
  if (r > 130 && g < 100 && b < 100) return "red";
  if (b > 130 && r < 100 && g < 110) return "blue";
  if (g > 110 && r < 90 && b < 120) return "green";
  return "other";
}

/** How many pixels of the video have which colour. */
export function colours(pixels) {
  const counts = {};
  for (let at = 0; at < pixels.length; at += 4) {
    const colour = colourOf(pixels.slice(at, at + 3));
    counts[colour] = (counts[colour] ?? 0) + 1;
  }
  return counts;
}

export const mostly = (pixels, colour) => (colours(pixels)[colour] ?? 0) > pixels.length / 4 / 2;

/** Wait until the video has a colour. */
export const shows = (page, colour) => until(`a picture in ${colour}`, async () => mostly(await picture(page), colour));
