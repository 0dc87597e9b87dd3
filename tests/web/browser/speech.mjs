/** Speech becomes captions, in the language that is chosen; where a browser has none, the reason is said. */

import assert from "node:assert/strict";

import { scenario, shows, state, text, until } from "./harness.mjs";

await scenario({
  before: (page) => page.addInitScript(() => {
    globalThis.recognisers = [];
    globalThis.SpeechRecognition = class {
      constructor() { globalThis.recognisers.push(this); }

      start() {}

      stop() {}
    };
    globalThis.hear = (...parts) => globalThis.recognisers.at(-1).onresult({
      results: parts.map(([transcript, isFinal]) => Object.assign([{ transcript }], { isFinal })) });
  }),
}, async (page, { sent, context, watch }) => {
  await state(page, "Live");
  const speak = page.locator("#speak");
  await speak.click();
  assert.equal(await speak.getAttribute("aria-pressed"), "true");
  assert.equal(await page.evaluate(() => globalThis.recognisers[0].lang), "en-US");
  await page.evaluate(() => globalThis.hear(["a person", false]));
  await page.waitForTimeout(150);
  await page.evaluate(() => globalThis.hear(["a person is running", false]));
  await shows(page, "red");
  await page.evaluate(() => globalThis.hear(["a person is running", true]));
  await page.locator("#language").selectOption("zh-CN");
  assert.equal(await page.evaluate(() => globalThis.recognisers.at(-1).lang), "zh-CN");
  await page.evaluate(() => globalThis.hear(["一个人正在打篮球", true]));
  await shows(page, "green");
  const captions = sent.filter(({ type }) => type === "caption").map(({ segment, revision, text: said, final }) => [segment, revision, said, final]);
  assert.deepEqual(captions, [[0, 0, "a person", false], [0, 1, "a person is running", false], [0, 2, "a person is running", true],
    [1, 0, "一个人正在打篮球", true]]);
  await page.evaluate(() => globalThis.recognisers.at(-1).onerror({ error: "audio-capture" }));
  await until("the reason", async () => /no microphone/.test(await text(page, "speech-note")));
  assert.equal(await speak.getAttribute("aria-pressed"), "false");

  const without = await context.newPage();
  watch(without);
  await without.addInitScript(() => {
    for (const name of ["SpeechRecognition", "webkitSpeechRecognition"]) Object.defineProperty(globalThis, name, { value: undefined });
  });
  await without.goto(page.url());
  await state(without, "Live");
  assert.ok(await without.locator("#speech").isHidden());
  assert.match(await text(without, "speech-note"), /needs a browser with speech recognition/);
});
