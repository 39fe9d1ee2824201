// The student in the browser: load it once, then classify images. app.js is its page.
import * as ort from "./runtime/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("./runtime/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // more need headers that static hosts do not send

/** Loads student.json and the model that it names. */
export async function loadStudent() {
  const facts = await (await fetch("student.json")).json();
  const model = new Uint8Array(await (await fetch(facts.file)).arrayBuffer());
  return { facts, session: await ort.InferenceSession.create(model) };
}

/** The bytes of an image file, a video frame or a canvas: {data, width, height}, RGB. */
export async function pixelsOf(source) {
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(source, options);
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  const data = new Uint8Array(3 * width * height);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    data[to++] = rgba[from];
    data[to++] = rgba[from + 1];
    data[to++] = rgba[from + 2];
  }
  return { data, width, height };
}

/** Whether an image is taken for one of the classes: the largest output is one, and reaches the threshold, if any. */
export function isKnown({ labels, other_class: other = false, unknown_threshold: threshold = 0 }, probabilities) {
  const largest = Math.max(...probabilities);
  const isOther = other && probabilities.indexOf(largest) === labels.length - 1; // "none of these" is the last
  return !isOther && largest >= threshold;
}

/** The probability of each class, in the order of student.json, and the milliseconds that the student took. */
export async function classify(student, { data, width, height }) {
  const images = new ort.Tensor("uint8", data, [1, height, width, 3]);
  const start = performance.now();
  const { probabilities } = await student.session.run({ images }, ["probabilities"]);
  return { probabilities: Array.from(probabilities.data), milliseconds: performance.now() - start };
}
