/** The stream survives a restart of the server: caption and settings are kept, nothing has to be typed. */

import assert from "node:assert/strict";

import { ask, picture, scenario, shows, state, text, until } from "./harness.mjs";

await scenario({ network: true }, async (page, { sent }) => {
  await state(page, "Live");
  await page.locator("#caption-text").fill("a person is playing basketball");
  await page.locator("#caption-text").press("Enter");
  await shows(page, "blue");
  await page.locator("#rate").selectOption("60");
  await until("60 frames a second", async () => parseFloat(await text(page, "fps")) > 40);

  await ask("stop");
  await state(page, "Trying again");
  const problem = page.locator("#problem");
  await problem.waitFor({ state: "visible" });
  assert.match(await text(page, "problem-message"), /the server stops|cannot be reached/i);
  assert.match(await text(page, "problem-remedy"), /tries again by itself/);
  assert.ok(await page.locator("#pause").isDisabled());
  await shows(page, "blue"); // the last picture stays
  const before = sent.length;

  await ask("start");
  await state(page, "Live");
  assert.ok(await problem.isHidden());
  const still = await picture(page);
  await until("new frames", async () => JSON.stringify(await picture(page)) !== JSON.stringify(still));
  await shows(page, "blue");
  const again = sent.slice(before);
  assert.equal(again.find(({ type }) => type === "hello").fps, 60);
  assert.equal(again.find(({ type }) => type === "caption").text, "a person is playing basketball");
  assert.equal(await page.locator("#rate").inputValue(), "60");
});
