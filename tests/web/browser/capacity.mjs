/** A full server says so, is tried again, and takes the page once there is room. */

import assert from "node:assert/strict";

import { scenario, state, text, until, url } from "./harness.mjs";

await scenario({ network: true }, async (page, { context, watch }) => {
  await state(page, "Live");
  const second = await context.newPage();
  watch(second);
  await second.goto(url);
  await until("the refusal", async () => /has 1 clients, as many as it takes/.test(await text(second, "problem-message")));
  assert.match(await text(second, "problem-remedy"), /try again later/i);
  assert.equal(await text(second, "state-text"), "Trying again");
  const retry = second.getByRole("button", { name: "Try now" });
  assert.ok(await retry.isVisible());
  await page.goto("about:blank");
  await until("room", async () => {
    if (await retry.isVisible()) await retry.click({ timeout: 1000 }).catch(() => {}); // it may have got in by itself
    return (await text(second, "state-text")) === "Live";
  });
  assert.ok(await second.locator("#problem").isHidden());
});
