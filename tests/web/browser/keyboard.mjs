/** All that the page does can be done from the keyboard, in an order that makes sense, and is named for screen readers. */

import assert from "node:assert/strict";

import { picture, scenario, shows, state, text, until } from "./harness.mjs";

const focused = (page) => page.evaluate(() => document.activeElement === document.body ? "the page" :
  document.activeElement.id || document.activeElement.textContent);

await scenario({}, async (page) => {
  await state(page, "Live");
  await page.keyboard.press("Tab");
  assert.equal(await focused(page), "To the caption", "the first stop leads past the rest");
  await page.keyboard.press("Enter");
  assert.equal(await focused(page), "caption-text");

  // What is read out is counted while typing: not every word of it.
  await page.evaluate(() => {
    globalThis.said = [];
    for (const region of document.querySelectorAll("[role=status], [role=alert]")) {
      new MutationObserver(() => globalThis.said.push(region.textContent.trim()))
        .observe(region, { childList: true, characterData: true, subtree: true });
    }
  });
  await page.keyboard.type("a person is running", { delay: 50 });
  await page.keyboard.press("Enter");
  await shows(page, "red");
  await until("the caption, said", async () => (await text(page, "announcer")) === "a person is running");
  assert.deepEqual(await page.evaluate(() => globalThis.said), ["a person is running"]);

  const stops = [];
  for (let press = 0; press < 40; press += 1) {
    await page.keyboard.press("Tab");
    const stop = await focused(page);
    if (stop === "To the caption") break;
    stops.push(stop);
    const outlined = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle !== "none");
    assert.ok(outlined || stop === "the page", `${stop} shows that it is focused`);
  }
  const order = ["while-typing", "a person is playing basketball", "一个人正在打篮球", "rate", "picture", "seed"];
  assert.deepEqual(stops.filter((stop) => order.includes(stop)), order);

  await page.locator("#pause").focus();
  await page.keyboard.press("Space");
  await state(page, "Paused");
  assert.equal(await text(page, "pause"), "Resume");
  await page.waitForTimeout(100); // for a frame that was being drawn
  const still = JSON.stringify(await picture(page));
  await page.waitForTimeout(400);
  assert.equal(JSON.stringify(await picture(page)), still, "no frame comes in a pause");
  await page.keyboard.press("Enter");
  await state(page, "Live");
  await until("frames again", async () => JSON.stringify(await picture(page)) !== still);

  await page.locator("#rate").focus();
  const rate = await page.locator("#rate").inputValue();
  await page.keyboard.press("ArrowDown");
  await until("another rate", async () => (await page.locator("#rate").inputValue()) !== rate);
  await page.locator("#seed").focus();
  await page.keyboard.press("ControlOrMeta+a");
  await page.keyboard.type("7");
  await page.keyboard.press("Enter");

  const nameless = await page.evaluate(() => [...document.querySelectorAll("button, input, select, canvas, [role=group], section")]
    .filter((one) => one.checkVisibility() && !(one.labels?.length || one.getAttribute("aria-label") || one.getAttribute("aria-labelledby") || one.textContent.trim()))
    .map((one) => one.outerHTML));
  assert.deepEqual(nameless, [], "everything has a name");
  const levels = await page.evaluate(() => [...document.querySelectorAll("h1, h2, h3")].map((one) => one.tagName));
  assert.deepEqual([levels[0], new Set(levels.slice(1))], ["H1", new Set(["H2"])]);
});
