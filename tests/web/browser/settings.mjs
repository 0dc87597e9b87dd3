/** Every picture format and rate is shown, a seed starts over, and a wrong one is not sent. */

import assert from "node:assert/strict";

import { scenario, shows, state, text, until } from "./harness.mjs";

await scenario({}, async (page, { sent }) => {
  await state(page, "Live");
  assert.equal(await page.locator("#picture").inputValue(), "jpeg 85", "what the server does is chosen");
  assert.equal(await page.locator("#rate").inputValue(), "30");
  for (const [example, colour, picture] of [["a person is running", "red", "raw"], ["a person is playing basketball", "blue", "webp 70"],
    ["一个人正在打篮球", "green", "jpeg 95"]]) {
    await page.locator("#picture").selectOption(picture);
    const [format] = picture.split(" ");
    await until(picture, () => sent.some((one) => one.action === "set" && one.format === format));
    await page.locator("#caption-text").fill(example);
    await page.locator("#caption-text").press("Enter");
    await shows(page, colour);
    assert.equal(await page.locator("#picture").inputValue(), picture);
  }
  await page.locator("#rate").selectOption("60");
  await until("60 a second", async () => parseFloat(await text(page, "fps")) > 40);
  await page.locator("#seed").fill("12345");
  await page.locator("#seed").press("Enter");
  await until("a start with this seed", () => sent.some(({ action, seed }) => action === "reset" && seed === 12345));
  await page.locator("#seed").fill("-1");
  await page.locator("#seed").press("Enter");
  await page.getByRole("button", { name: "Start over" }).click();
  await until("a start", () => sent.some(({ action, seed }) => action === "reset" && seed === undefined));
  assert.ok(!sent.some(({ seed }) => seed === -1));
});
