/** An emulated Quest 3 enters immersive-ar: the panel in both eyes, and nothing drawn over the room. */

import assert from "node:assert/strict";

import { ask, scenario, screenshot, shows, state, text, until } from "./harness.mjs";
import { bothEyesSeeItMove, streaming } from "./headset.mjs";

await scenario({ quest: true, network: true }, async (page) => {
  await streaming(page);
  await page.locator("[name=placement][value=head]").check();
  await page.getByRole("button", { name: "Enter AR" }).click();
  await page.evaluate(() => { document.querySelector("main").style.visibility = "hidden"; }); // the room: the emulator shows the page there
  await bothEyesSeeItMove(page, "red", "ar.png");
  const shot = await screenshot(page);
  const corner = await page.evaluate(() => {
    const canvas = [...document.querySelectorAll("canvas")].find((one) => one.id !== "video");
    return new Promise((resolve) => globalThis.quest.activeSession.requestAnimationFrame(() => {
      const gl = canvas.getContext("webgl2");
      const pixel = new Uint8Array(4);
      gl.readPixels(2, 2, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);
      resolve([...pixel]);
    }));
  });
  assert.deepEqual(corner, [0, 0, 0, 0], "the room can be seen");
  assert.ok(shot.width === 1280);

  // The server goes away and comes back while the headset is on.
  await ask("stop");
  await until("a reconnect", async () => (await text(page, "state-text")) === "Trying again");
  await ask("start");
  await state(page, "Live");
  await bothEyesSeeItMove(page);
  await page.evaluate(() => globalThis.quest.activeSession.end());
  await page.evaluate(() => { document.querySelector("main").style.visibility = ""; });
  await until("the page again", async () => (await text(page, "enter-ar")) === "Enter AR");
  await shows(page, "red");
});
