/**
 * A photo that is looked at or asked about: one of the index, or one the user brought.
 *
 * Answers about a photo are remembered, so that going back to it costs nothing.
 */

import { ask } from "./api.js";

const KEPT = 300; // answers
const answers = new Map();
const uploads = new Map();

/** A photo of the index, by what is known of it: an item of `/photos`, or a hit. */
export const indexed = (item) => ({ ...item, upload: null });

/** A photo the user brought: its file as it is sent, its address here, and its size if the browser can read it. */
export function uploaded(file, url, width, height) {
  const name = file.name || "Pasted photo";
  const subject = { id: `upload-${uploads.size + 1}`, name, upload: file, url, width, height };
  uploads.set(subject.id, subject);
  return subject;
}

/** The photo the address calls `id`: an upload of this tab, or else one of the index; null for an upload of old. */
export function subjectOf(id) {
  if (id.startsWith("upload")) return uploads.get(id) ?? null;
  return indexed({ id, name: "" });
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
