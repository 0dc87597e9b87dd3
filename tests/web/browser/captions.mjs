/** Typing a caption changes the picture, word by word and with Enter; an example does too. */

import assert from "node:assert/strict";

import { picture, scenario, shows, state, text, until } from "./harness.mjs";

await scenario({}, async (page, { sent }) => {
  await state(page, "Live");
  assert.equal(await text(page, "bundle"), "tiny");
  const blank = await picture(page);
  await page.locator("#caption-text").pressSequentially("a person is running", { delay: 40 });
  await shows(page, "red");
  const red = await picture(page);
  assert.notDeepEqual(red, blank);
  await until("a picture that moves", async () => JSON.stringify(await picture(page)) !== JSON.stringify(red));

  const typed = sent.filter(({ type }) => type === "caption");
  assert.ok(typed.length >= 3 && typed.length <= 19, `${typed.length} partial captions`);
  assert.deepEqual(typed.map(({ revision }) => revision), [...typed.keys()].map((index) => typed[index].revision).sort((a, b) => a - b));
  assert.ok(typed.every(({ segment, final }) => segment === 0 && !final));
  assert.equal(typed.at(-1).text, "a person is running");

  await page.locator("#caption-text").press("Enter");
  await until("the final", () => sent.at(-1).final === true || sent.some((one) => one.final && one.text === "a person is running"));
  await page.locator("#while-typing").uncheck();
  await page.locator("#caption-text").fill("a person is playing basketball");
  await shows(page, "red"); // nothing is sent before Enter now
  await page.locator("#caption-text").press("Enter");
  await shows(page, "blue");
  assert.equal(await text(page, "shown"), "a person is playing basketball");
  const last = sent.filter(({ type }) => type === "caption").at(-1);
  assert.deepEqual([last.segment, last.revision, last.final], [1, 0, true]);
  assert.equal(await page.locator("#video").getAttribute("aria-label"), "Video: a person is playing basketball");

  await page.getByRole("button", { name: "一个人正在打篮球" }).click();
  await shows(page, "green");
  assert.equal(await page.locator("#shown").getAttribute("lang"), "zh");
  await until("the numbers", async () => /^\d+ ms$/.test(await text(page, "latency")) && parseFloat(await text(page, "fps")) > 5);
  await until("what a screen reader hears", async () => (await text(page, "announcer")) === "一个人正在打篮球");
});
