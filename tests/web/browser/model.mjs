/** A real model's stream: captions change the picture, and it moves. */

import assert from "node:assert/strict";

import { picture, scenario, state, until } from "./harness.mjs";

/** The mean difference of two pictures, in levels of 255. */
const difference = (a, b) => a.reduce((sum, value, at) => sum + Math.abs(value - b[at]), 0) / a.length;

/** The mean of a picture over a second: what stays when it moves. */
async function mean(page) {
  const pictures = [];
  for (let count = 0; count < 12; count += 1) {
    pictures.push(await picture(page));
    await page.waitForTimeout(80);
  }
  return { mean: pictures[0].map((_, at) => pictures.reduce((sum, one) => sum + one[at], 0) / pictures.length), pictures };
}

await scenario({}, async (page) => {
  await state(page, "Live");
  await page.getByRole("button", { name: "a person is running" }).click();
  await until("a picture", async () => difference(await picture(page), (await picture(page)).fill(0)) > 70);
  const one = await mean(page);
  assert.ok(new Set(one.pictures.map(String)).size > 3, "it moves");
  await page.locator("#caption-text").fill("一个人正在打篮球");
  await page.locator("#caption-text").press("Enter");
  await until("the other caption", async () => (await page.locator("#shown").textContent()) === "一个人正在打篮球");
  await page.waitForTimeout(700); // the blend
  const two = await mean(page);
  const changed = difference(one.mean, two.mean);
  assert.ok(changed > 0.5, `another caption is another picture: ${changed}`);
  return { changed };
});
