/**
 * A photo that is looked at or asked about: one of the index, or one the user brought.
 *
 * Answers about a photo are remembered, so that going back to it costs nothing.
 */

import { ask } from "./api.js";
import { keep, kept } from "./uploads.js";

const KEPT = 300; // answers
const answers = new Map();
const uploads = new Map();
const known = new Map(); // photos of the index: their names stay when the server is away

/** A photo of the index, by what is known of it: an item of `/photos`, or a hit. */
export function indexed(item) {
  const { id, name, start, end, width, height } = item;
  if (name) known.set(id, { id, name, start, end, width, height });
  return { ...item, upload: null };
}

/**
 * A photo the user brought: its file as it is sent, its address here, and its size if the browser can read it.
 * Resolves once it is kept.
 */
export async function uploaded(file, url, width, height) {
  const name = file.name || "Pasted photo";
  const id = `upload-${[...crypto.getRandomValues(new Uint32Array(2))].map((n) => n.toString(36)).join("")}`;
  const subject = { id, name, upload: file, url, width, height };
  uploads.set(id, subject);
  await keep({ id, name, file, shown: url !== null, width, height });
  return subject;
}

/** Bring back the photos of earlier visits; for a start. */
export async function restore() {
  for (const { id, name, file, shown, width, height } of await kept()) {
    uploads.set(id, { id, name, upload: file, url: shown ? URL.createObjectURL(file) : null, width, height });
  }
}

/** The photo the address calls `id`: one that was brought, or else one of the index; null for one of long ago. */
export function subjectOf(id) {
  if (id.startsWith("upload")) return uploads.get(id) ?? null;
  return indexed(known.get(id) ?? { id, name: "" });
}

/** A photo, or the `box` of it, as a part of a query of several. */
export async function termOf(subject, box) {
  const photo = subject.upload === null ? { photo: subject.id } : { image: await dataUri(subject.upload) };
  return box ? { ...photo, box } : photo;
}

function dataUri(file) {
  return new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => fail(new Error("The photo cannot be read any more."));
    reader.readAsDataURL(file);
  });
}

/** Ask `path` about a photo; `fields` are the other fields of the request. */
export async function askAbout(subject, path, fields, signal) {
  const key = JSON.stringify([subject.id, path, fields]);
  if (answers.has(key)) return answers.get(key);
  const answer = await ask(path, { body: bodyOf(subject, fields), signal });
  answers.set(key, answer);
  if (answers.size > KEPT) answers.delete(answers.keys().next().value);
  if (answer.width) Object.assign(subject, { width: answer.width, height: answer.height });
  return answer;
}

/** Width and height in pixels of the upright photo: what boxes are counted in. */
export async function sizeOf(subject, signal) {
  if (!subject.width) await askAbout(subject, "regions", { count: 1 }, signal); // its answer tells the size
  return [subject.width, subject.height];
}

/** Answers may be others now: the index has changed. */
export const forget = () => answers.clear();

function bodyOf(subject, fields) {
  if (subject.upload === null) return { photo: subject.id, ...fields };
  const form = new FormData();
  form.append("image", subject.upload, subject.upload.name || "photo");
  for (const [name, value] of Object.entries(fields)) {
    form.append(name, typeof value === "string" ? value : JSON.stringify(value));
  }
  return form;
}
