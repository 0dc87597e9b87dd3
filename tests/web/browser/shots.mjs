/** The pictures of docs/web.md, of a server that shows a bundle: PNG files, to be made small. Not a test. */

import { scenario, screenshot, state, text, until } from "./harness.mjs";

const CAPTION = "a person is playing basketball";

await scenario({ quest: true, context: { deviceScaleFactor: 1 } }, async (page) => {
  await state(page, "Live");
  await page.locator("#caption-text").fill(CAPTION);
  await page.locator("#caption-text").press("Enter");
  await until("a caption", async () => (await text(page, "shown")) === CAPTION);
  await page.waitForTimeout(3000); // for numbers that mean something
  const take = async (name, width, height, colorScheme, full = false) => {
    await page.setViewportSize({ width, height });
    await page.emulateMedia({ colorScheme });
    await page.evaluate(() => { document.activeElement.blur(); scrollTo(0, 0); });
    await page.waitForTimeout(500);
    await page.screenshot({ path: `${process.argv[3]}/${name}.png`, fullPage: full });
  };
  await take("page-light", 1200, 800, "light");
  await take("page-dark", 1200, 800, "dark");
  await take("page-narrow", 360, 900, "light", true);
  await page.setViewportSize({ width: 1280, height: 640 });
  await page.getByRole("button", { name: "Enter VR" }).click();
  await page.waitForTimeout(2000);
  await screenshot(page, "page-vr.png");
  await page.evaluate(() => globalThis.quest.activeSession.end());
});
