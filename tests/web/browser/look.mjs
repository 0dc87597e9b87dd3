/** Narrow, light and dark: nothing runs out of the page, all text can be read, and nothing moves that need not. */

import assert from "node:assert/strict";

import { scenario, state, text } from "./harness.mjs";

/** In the page: the contrast of each text with what is behind it, as WCAG 2 counts it. */
function lowContrast() {
  const channels = (colour) => {
    const context = new OffscreenCanvas(1, 1).getContext("2d");
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((value) => value / 255).map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (colour !== "rgba(0, 0, 0, 0)") return channels(colour);
    }
    return [255, 255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || element.disabled || element.closest("canvas, .skip, .unseen, noscript")) continue;
    const [a, b] = [luminance(channels(getComputedStyle(element).color)), luminance(behind(element))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    if (contrast < 4.5) found.push(`${element.textContent.trim().slice(0, 40)}: ${contrast.toFixed(2)}`);
  }
  return found;
}

await scenario({ context: { reducedMotion: "reduce" } }, async (page) => {
  await state(page, "Live");
  await page.evaluate(() => { document.getElementById("problem").hidden = false; document.getElementById("token-form").hidden = false; });
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
    assert.deepEqual(await page.evaluate(lowContrast), [], colorScheme);
    for (const width of [320, 360, 768, 1280, 2560]) {
      await page.setViewportSize({ width, height: 800 });
      const wide = await page.evaluate(() => [...document.querySelectorAll("body *")].filter((one) =>
        one.checkVisibility() && !one.closest(".skip, .unseen") && one.getBoundingClientRect().right > innerWidth + 0.5).map((one) => one.id || one.tagName));
      assert.deepEqual(wide, [], `${width} px`);
      assert.equal(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), true);
    }
  }
  await page.setViewportSize({ width: 360, height: 800 });
  const small = await page.evaluate(() => [...document.querySelectorAll("button, select, input:not([type=checkbox], [type=radio])")]
    .filter((one) => one.checkVisibility() && one.getBoundingClientRect().height < 36).map((one) => one.id || one.textContent));
  assert.deepEqual(small, [], "all can be hit with a finger");
  const moving = await page.evaluate(() => [...document.querySelectorAll("*")].filter((one) =>
    parseFloat(getComputedStyle(one).transitionDuration) > 0 || getComputedStyle(one).animationName !== "none").length);
  assert.equal(moving, 0);
  assert.ok(await page.locator("#enter-vr").isHidden() && await page.locator("#enter-ar").isHidden());
  assert.match(await text(page, "headset-note"), /No headset is connected|no WebXR/);
});
