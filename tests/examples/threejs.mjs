/** Opens the three.js example in Chromium; says the colours on the panel for each caption that a line of stdin has. */

import { createRequire } from "node:module";
import path from "node:path";
import { createInterface } from "node:readline";

const [url, modules, executablePath] = process.argv.slice(2);
const { chromium } = createRequire(path.join(modules, "any.js"))("playwright-core");
const browser = await chromium.launch({
  executablePath, headless: true,
  args: ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
});
const page = await browser.newPage({ viewport: { width: 480, height: 480 } });
const wrong = [];
page.on("pageerror", (error) => wrong.push(String(error)));
page.on("console", (message) => { if (message.type() === "error") wrong.push(message.text()); });
await page.goto(url);

/** The colours of the screen at places in percent, from a screenshot, as whoever sits before it sees them. */
async function look(places) {
  const picture = (await page.screenshot()).toString("base64");
  return page.evaluate(async ([data, where]) => {
    const bitmap = await createImageBitmap(await (await fetch(`data:image/png;base64,${data}`)).blob());
    const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
    context.drawImage(bitmap, 0, 0);
    const pixel = (x, y) => [...context.getImageData(x * bitmap.width / 100, y * bitmap.height / 100, 1, 1).data];
    return where.map(([x, y]) => pixel(x, y).slice(0, 3));
  }, [picture, places]);
}

for await (const line of createInterface({ input: process.stdin })) {
  await page.locator("#caption").fill(line);
  await page.locator("#caption").press("Enter");
  const says = (text) => document.getElementById("status").textContent === text;
  await page.waitForFunction(says, line, { timeout: 20000 });
  await page.waitForTimeout(500);
  const [top, bottom, corner] = await look([[50, 35], [50, 65], [2, 2]]);
  process.stdout.write(`${JSON.stringify({ top, bottom, corner, wrong })}\n`);
}
await browser.close();
