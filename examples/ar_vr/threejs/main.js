/** A panel in a room, with a live stream on it; in VR too, where there is a headset. */

import * as THREE from "three";
import { VRButton } from "three/addons/webxr/VRButton.js";
import { LiveStream } from "t2v-edge";

import { StreamTexture } from "./stream-texture.js";

const asked = new URLSearchParams(location.search);
const stream = new LiveStream(asked.get("server") ?? "ws://127.0.0.1:8765/live", { settings: { fps: 30 } });
const texture = new StreamTexture(stream);

const scene = new THREE.Scene();
scene.background = new THREE.Color(0x0d0f14);
scene.add(new THREE.GridHelper(10, 20, 0x445066, 0x232936));
const material = new THREE.MeshBasicMaterial({ map: texture, toneMapped: false });
const panel = new THREE.Mesh(new THREE.PlaneGeometry(1.6, 1.6), material);
panel.position.set(0, 1.5, -2);
panel.visible = false;
scene.add(panel);

const camera = new THREE.PerspectiveCamera(60, 1, 0.05, 50);
camera.position.set(0, 1.5, 0);
const renderer = new THREE.WebGLRenderer({ antialias: true });
renderer.xr.enabled = true;
document.body.append(renderer.domElement, VRButton.createButton(renderer));

function fit() {
  camera.aspect = innerWidth / innerHeight;
  camera.updateProjectionMatrix();
  renderer.setSize(innerWidth, innerHeight);
}
addEventListener("resize", fit);
fit();

renderer.setAnimationLoop(() => {
  if (texture.update()) panel.visible = true;
  renderer.render(scene, camera);
});

const input = document.getElementById("caption");
const status = document.getElementById("status");
document.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (input.value.trim()) stream.caption(input.value);
});
stream.addEventListener("showing", () => { status.textContent = stream.shown; });
stream.addEventListener("state", () => {
  if (stream.state !== "open") status.textContent = stream.error ? `${stream.error.message}` : stream.state;
});
stream.addEventListener("problem", ({ detail }) => { status.textContent = `${detail.message}; ${detail.remedy}`; });
stream.caption(input.value);
stream.connect().catch(() => {}); // `state` has said why
