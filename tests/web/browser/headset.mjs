/** What the scenarios of a headset share. */

import assert from "node:assert/strict";

import { colourOf, screenshot, shows, state, until } from "./harness.mjs";

export async function streaming(page, caption = "a person is running", colour = "red") {
  await state(page, "Live");
  await page.locator("#caption-text").fill(caption);
  await page.locator("#caption-text").press("Enter");
  await shows(page, colour);
}

/** The panel in one eye's half of a screenshot: where it is, and its pixels' colours. */
export function panelIn(shot, eye, colour = "red") {
  const left = eye === "left" ? 0 : shot.width / 2;
  const found = { left: Infinity, right: -Infinity, top: Infinity, bottom: -Infinity, count: 0, white: [] };
  for (let y = 0; y < shot.height; y += 2) {
    for (let x = left; x < left + shot.width / 2; x += 2) {
      const seen = colourOf(shot.at(x, y));
      if (seen === colour) {
        found.count += 1;
        found.left = Math.min(found.left, x - left);
        found.right = Math.max(found.right, x - left);
        found.top = Math.min(found.top, y);
        found.bottom = Math.max(found.bottom, y);
      }
    }
  }
  const middle = Math.round((found.top + found.bottom) / 2);
  for (let x = left + found.left; x <= left + found.right; x += 2) {
    if (colourOf(shot.at(x, middle)) === "white") found.white.push(x - left);
  }
  return found;
}

/** Both eyes see the panel, and in both it moves. Gives the last two views. */
export async function bothEyesSeeItMove(page, colour = "red", name = undefined) {
  const one = await until("the panel in both eyes", async () => {
    const shot = await screenshot(page, name);
    const eyes = ["left", "right"].map((eye) => panelIn(shot, eye, colour));
    return eyes.every(({ count }) => count > 500) ? eyes : null;
  });
  await until("another picture in both eyes", async () => {
    const shot = await screenshot(page);
    const eyes = ["left", "right"].map((eye) => panelIn(shot, eye, colour));
    return eyes.every(({ white }, index) => white.length && String(white) !== String(one[index].white));
  });
  assert.ok(one[0].left > one[1].left, "the eyes see it from two places: nearer than infinity");
  return one;
}
