/** Puts the page of files together: the player, uploads, downloads, the log, the pulse. */

import { describeRung } from "./client.js";
import { Heartbeat, Strip } from "./heartbeat.js";
import { setText } from "./dom.js";
import { followLog } from "./log.js";
import { fetchInParts, PartsMap } from "./parts.js";
import { bytes } from "./sizes.js";
import { FormUpload, Upload } from "./upload.js";

/** @typedef {{name: string, size: number, media_type: string}} Listed */
/** @typedef {{videos: Listed[], models: Listed[], uploads: Listed[], max_upload: number}} Files */

/** @param {string} id */
const element = (id) => /** @type {any} */ (document.getElementById(id));

const heartbeat = new Heartbeat(() => {});
const strip = new Strip(element("heartbeat"), heartbeat);
const map = new PartsMap(element("parts"));

heartbeat.onLost = () => {
  setText(element("lost"), `The server has given no answer since ${new Date().toLocaleTimeString()}. Still asking.`);
  element("lost").hidden = false;
};
heartbeat.onBack = () => {
  element("lost").hidden = true;
  introduce();
};

async function introduce() {
  try {
    const rung = await describeRung();
    document.title = `Rung ${rung.number}: ${rung.name}`;
    for (const [id, text] of Object.entries({ number: rung.number, name: rung.name, idea: rung.idea, source: rung.source })) {
      setText(element(id), text);
    }
    await list();
  } catch {
    // The pulse says what is wrong, and comes back here when it is over.
  }
}

/** @param {string} prefix @param {Listed} file */
const address = (prefix, file) => prefix + encodeURIComponent(file.name);

/** @param {string} prefix @param {Listed} file */
function link(prefix, file) {
  const item = document.createElement("li");
  const anchor = item.appendChild(document.createElement("a"));
  anchor.href = address(prefix, file);
  anchor.textContent = anchor.download = file.name;
  const size = item.appendChild(document.createElement("span"));
  size.textContent = ` ${bytes(file.size)}`;
  return item;
}

async function list() {
  const response = await fetch("/files", { cache: "no-store" });
  const files = /** @type {Files} */ (await response.json());
  element("models").replaceChildren(...files.models.map((file) => link("/download/model/", file)));
  element("uploaded").replaceChildren(...files.uploads.map((file) => link("/uploads/", file)));
  element("no-uploads").hidden = files.uploads.length > 0;
  element("limit").textContent = bytes(files.max_upload);
  const playable = [
    ...files.videos.map((file) => ({ url: address("/stream-video/", file), file })),
    ...files.uploads.map((file) => ({ url: address("/uploads/", file), file })),
  ].filter(({ file }) => file.media_type.startsWith("video/"));
  const chosen = element("choice").value;
  element("choice").replaceChildren(...playable.map(({ url, file }) => new Option(`${file.name}, ${bytes(file.size)}`, url)));
  if (playable.some(({ url }) => url === chosen)) element("choice").value = chosen;
  if (element("choice").value !== chosen) play();
}

function play() {
  element("video").src = element("choice").value;
  map.clear();
  setText(element("parts-status"), "");
}

element("choice").addEventListener("change", play);
element("in-parts").addEventListener("click", async () => {
  element("in-parts").disabled = true;
  map.clear();
  try {
    setText(element("parts-status"), await fetchInParts(element("choice").value, 8, map));
  } catch (error) {
    setText(element("parts-status"), `Failed: ${error}`);
  }
  element("in-parts").disabled = false;
});

/** @param {FileList} files */
function send(files) {
  for (const file of files) {
    const row = element("upload-row").content.firstElementChild.cloneNode(true);
    element("uploads").prepend(row);
    const Kind = element("as-form").checked ? FormUpload : Upload;
    new Kind(file, row).run().finally(introduce);
  }
}

element("chooser").addEventListener("change", () => {
  send(element("chooser").files);
  element("chooser").value = "";
});
const drop = element("drop");
for (const kind of ["dragover", "dragleave", "drop"]) {
  drop.addEventListener(kind, (/** @type {DragEvent} */ event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer) send(event.dataTransfer.files);
  });
}

element("rows").addEventListener("input", () => {
  if (element("rows").checkValidity()) element("export-link").href = `/export.csv?rows=${element("rows").value}`;
});
element("export").addEventListener("submit", (/** @type {Event} */ event) => {
  event.preventDefault();
  element("export-link").click();
});

let drawn = 0;

/** @param {number} now */
function frame(now) {
  if (now - drawn >= 45) {
    drawn = now;
    strip.draw();
    heartbeat.forget(performance.now() - 60_000);
  }
  requestAnimationFrame(frame);
}

introduce();
followLog(element("lines"));
heartbeat.start();
requestAnimationFrame(frame);
