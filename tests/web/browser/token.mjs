/** Where a token is needed the page asks for it, says that a wrong one is wrong, and keeps the right one for the tab. */

import assert from "node:assert/strict";

import { scenario, shows, state, text, until } from "./harness.mjs";

await scenario({}, async (page, { sent }) => {
  await state(page, "Not connected");
  const token = page.getByLabel("Token of this server");
  await token.waitFor({ state: "visible" });
  assert.match(await text(page, "problem-message"), /asks for a token/);
  assert.equal(await page.evaluate(() => document.activeElement.id), "token");
  await page.keyboard.type("not-the-right-one");
  await page.keyboard.press("Enter");
  await until("a refusal", async () => /does not take this token/.test(await text(page, "problem-message")));

  await token.fill("correct-horse-battery");
  await page.keyboard.press("Enter");
  await state(page, "Live");
  assert.ok(await token.isHidden() && await page.locator("#problem").isHidden());
  assert.equal(await page.evaluate(() => document.activeElement.id), "caption-text");
  await page.locator("#caption-text").fill("a person is running");
  await page.keyboard.press("Enter");
  await shows(page, "red");
  assert.ok(!page.url().includes("correct"), "never in the address");

  await page.reload();
  await state(page, "Live");
  assert.deepEqual(sent.filter(({ type }) => type === "hello").map(({ token: one }) => one),
    [undefined, "not-the-right-one", "correct-horse-battery", "correct-horse-battery"]);
});
