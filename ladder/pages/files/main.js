/** The page of rung 12: the player, uploads, downloads and the log. */

import { describeError, request } from "../shared/client.js";
import { copyTemplate, element, make, setText } from "../shared/dom.js";
import { bytes } from "../shared/format.js";
import { begin } from "../shared/shell.js";
import { followLog } from "./log.js";
import { fetchInParts, PartsMap } from "./parts.js";
import { FormUpload, Upload } from "./upload.js";

/** @typedef {{name: string, size: number, media_type: string}} Listed */
/** @typedef {{videos: Listed[], models: Listed[], uploads: Listed[], max_upload: number}} Files */

const map = new PartsMap(element("parts"));
const choice = /** @type {HTMLSelectElement} */ (element("choice"));
const partsButton = /** @type {HTMLButtonElement} */ (element("in-parts"));
const chooser = /** @type {HTMLInputElement} */ (element("chooser"));
const rows = /** @type {HTMLInputElement} */ (element("rows"));
const exportLink = /** @type {HTMLAnchorElement} */ (element("export-link"));

/** @param {string} prefix @param {Listed} file */
const address = (prefix, file) => prefix + encodeURIComponent(file.name);

/** @param {string} prefix @param {Listed} file */
function link(prefix, file) {
  const anchor = make("a", { href: address(prefix, file), download: file.name }, file.name);
  return make("li", {}, anchor, make("span", {}, ` ${bytes(file.size)}`));
}

async function list() {
  let files;
  try {
    files = /** @type {Files} */ (await request("GET", "/files"));
  } catch {
    return; // the heartbeat shows the failure, and calls this again when the server responds
  }
  element("models").replaceChildren(...files.models.map((file) => link("/download/model/", file)));
  element("uploaded").replaceChildren(...files.uploads.map((file) => link("/uploads/", file)));
  element("no-uploads").hidden = files.uploads.length > 0;
  element("limit").textContent = bytes(files.max_upload);
  const playable = [
    ...files.videos.map((file) => ({ url: address("/stream-video/", file), file })),
    ...files.uploads.map((file) => ({ url: address("/uploads/", file), file })),
  ].filter(({ file }) => file.media_type.startsWith("video/"));
  const chosen = choice.value;
  choice.replaceChildren(...playable.map(({ url, file }) => new Option(`${file.name}, ${bytes(file.size)}`, url)));
  if (playable.some(({ url }) => url === chosen)) choice.value = chosen;
  if (choice.value !== chosen) play();
}

const POSTERS = new Map([["/stream-video/batching.webm", "/page/files/batching.png"]]); // other videos show their first frame
let fetching = new AbortController(); // the parts of the chosen file

function play() {
  fetching.abort();
  const video = /** @type {HTMLVideoElement} */ (element("video"));
  video.poster = POSTERS.get(choice.value) ?? "";
  video.src = choice.value;
  map.clear();
  setText(element("parts-status"), "");
  partsButton.disabled = false;
}

choice.addEventListener("change", play);
partsButton.addEventListener("click", async () => {
  partsButton.disabled = true;
  map.clear();
  fetching = new AbortController();
  const { signal } = fetching;
  const outcome = await fetchInParts(choice.value, 8, map, signal).catch((error) => `Failed: ${describeError(error)}`);
  if (signal.aborted) return; // another file was chosen
  setText(element("parts-status"), outcome);
  partsButton.disabled = false;
});

/** @param {FileList} files */
function send(files) {
  for (const file of files) {
    const row = copyTemplate("upload-row");
    element("uploads").prepend(row);
    const Kind = /** @type {HTMLInputElement} */ (element("as-form")).checked ? FormUpload : Upload;
    new Kind(file, row).run().finally(list);
  }
}

chooser.addEventListener("change", () => {
  if (chooser.files) send(chooser.files);
  chooser.value = "";
});
const drop = element("drop");
for (const kind of /** @type {const} */ (["dragover", "dragleave", "drop"])) {
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer) send(event.dataTransfer.files);
  });
}

rows.addEventListener("input", () => {
  if (rows.checkValidity()) exportLink.href = `/export.csv?rows=${rows.value}`;
  else exportLink.removeAttribute("href");
});
element("export").addEventListener("submit", (event) => {
  event.preventDefault();
  exportLink.click();
});

begin({ onRung: list });
followLog(element("lines"));
