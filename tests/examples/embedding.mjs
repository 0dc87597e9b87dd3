/** Embeds an image in pages of several origins, in Chromium; says the width that each page sees, or "refused". */

import { createRequire } from "node:module";
import path from "node:path";

const [modules, executablePath, image, ...pages] = process.argv.slice(2);
const { chromium } = createRequire(path.join(modules, "any.js"))("playwright-core");
const browser = await chromium.launch({ executablePath, headless: true, args: ["--no-sandbox"] });
const seen = {};
const page = await browser.newPage();
for (const [origin, crossOrigin] of pages.flatMap((one) => [[one, "anonymous"], [one, null]])) {
  await page.goto(origin);
  seen[`${origin} ${crossOrigin}`] = await page.evaluate(([src, cross]) => new Promise((done) => {
    const shown = new Image();
    if (cross !== null) shown.crossOrigin = cross;
    shown.onerror = () => done("refused");
    shown.src = src;
    document.body.append(shown);
    setInterval(() => { if (shown.naturalWidth > 0) done(shown.naturalWidth); }, 20); // it never has all of it
  }), [image, crossOrigin]);
}
await page.goto(image, { waitUntil: "commit" }); // as somebody types it
await page.waitForFunction(() => document.images[0]?.naturalWidth > 0);
seen.typed = await page.evaluate(() => document.images[0].naturalWidth);
process.stdout.write(`${JSON.stringify(seen)}\n`);
await browser.close();
