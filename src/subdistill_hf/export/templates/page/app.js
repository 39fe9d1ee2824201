// The page: files, drops and the camera in; probabilities out.
import { classify, isKnown, loadStudent, pixelsOf } from "./student.js";

const MOST_SHOWN = 5;
const SMALL = 128; // pixels: below, an image is shown as it is, without smoothing
const element = (id) => document.getElementById(id);
const status = (text) => { element("status").textContent = text; };

/** An element with text or children. */
function make(tag, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
}

function show(name, source, { probabilities, milliseconds }, width, facts) {
  const { labels } = facts;
  const order = probabilities.map((_, output) => output).sort((a, b) => probabilities[b] - probabilities[a]);
  const rows = order.slice(0, MOST_SHOWN).map((output) => {
    const percent = `${(100 * probabilities[output]).toFixed(1)} %`;
    const meter = make("meter", { value: probabilities[output], max: 1 });
    meter.setAttribute("aria-hidden", "true"); // the percentage beside it says the same
    const head = make("th", { scope: "row" }, labels[output]);
    return make("tr", {}, head, make("td", {}, meter), make("td", {}, percent));
  });
  const image = make("img", { src: source, alt: name, className: width < SMALL ? "small" : "" });
  const time = make("p", { className: "time" }, `${milliseconds.toFixed(1)} ms`);
  const heading = make("h3", {}, name);
  const article = make("article", {}, image, heading, make("table", {}, ...rows), time);
  if (!isKnown(facts, probabilities)) {
    heading.after(make("p", { className: "unknown" }, "Probably none of these classes."));
  }
  element("answers").prepend(article);
}

async function answer(student, items) {
  let failed = 0;
  for (const { name, blob } of items) {
    status(`Looking at ${name} …`);
    try {
      const pixels = await pixelsOf(blob);
      const source = URL.createObjectURL(blob);
      show(name, source, await classify(student, pixels), pixels.width, student.facts);
    } catch (error) {
      failed += 1;
      status(`${name} cannot be read as an image.`);
    }
  }
  const done = items.length - failed;
  if (!failed) status(done === 1 ? "1 image classified." : `${done} images classified.`);
}

/** The explained examples of the student, each with its heat maps. */
function showExamples(examples) {
  for (const { name, target, answers, ...pictures } of examples) {
    const figure = (kind, caption, alt) =>
      make("figure", {}, make("img", { src: pictures[kind], alt }), make("figcaption", {}, caption));
    const heatMap = (kind) =>
      figure(kind, `${kind}: ${answers[kind]}`, `Heat map of the ${kind}, which answers ${answers[kind]}`);
    const maps = make("div", { className: "maps" }, figure("image", "image", name), heatMap("teacher"), heatMap("student"));
    document.querySelector(".examples").append(make("article", {}, make("h3", {}, `${name}: ${target}`), maps));
  }
  element("examples").hidden = examples.length === 0;
}

function listen(student) {
  const files = element("files"), drop = element("drop");
  const take = (list) => answer(student, [...list].map((file) => ({ name: file.name, blob: file })));
  files.disabled = false;
  files.addEventListener("change", async () => { await take(files.files); files.value = ""; });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop") take(event.dataTransfer.files);
    });
  }
  document.addEventListener("paste", (event) => take(event.clipboardData.files));
  useCamera(student);
}

function useCamera(student) {
  const button = element("camera"), shot = element("shot"), video = element("video");
  if (!navigator.mediaDevices?.getUserMedia) return; // no secure page, or no camera
  button.disabled = false;
  button.addEventListener("click", async () => {
    if (video.srcObject) {
      video.srcObject.getTracks().forEach((track) => track.stop());
      video.srcObject = null;
      video.hidden = shot.hidden = true;
      button.textContent = "Use the camera";
      return;
    }
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch (error) {
      status("The camera cannot be used: the browser did not allow it, or there is none.");
      return;
    }
    video.hidden = shot.hidden = false;
    button.textContent = "Stop the camera";
    await video.play();
  });
  shot.addEventListener("click", async () => {
    const canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
    canvas.getContext("2d").drawImage(video, 0, 0);
    answer(student, [{ name: "picture of the camera", blob: await canvas.convertToBlob() }]);
  });
}

try {
  const student = await loadStudent();
  document.title = element("title").textContent = student.facts.title;
  element("warning").textContent = student.facts.warning;
  for (const [name, value] of Object.entries(student.facts.facts)) {
    element("facts").append(make("dt", {}, name), make("dd", {}, value));
  }
  showExamples(student.facts.examples);
  listen(student);
  status("Ready.");
} catch (error) {
  status(`The student cannot be loaded: ${error.message}`);
  throw error;
}
