/**
 * The photos a user brought, kept in this browser so that a reload finds them; the last few of them.
 *
 * Where the browser keeps nothing (a private window may not) they last as long as the page.
 */

const LAST = 12;
const STORE = "photos";

/** Keep a photo: {id, name, file, ...}. */
export function keep(photo) {
  return inStore("readwrite", (store) => {
    store.put({ ...photo, at: Date.now() });
    store.index("at").getAllKeys().onsuccess = ({ target }) => target.result.slice(0, -LAST).forEach((id) => store.delete(id));
  });
}

/** The photos that are kept, the oldest first. */
export async function kept() {
  let photos = [];
  await inStore("readonly", (store) => {
    store.index("at").getAll().onsuccess = ({ target }) => { photos = target.result; };
  });
  return photos;
}

async function inStore(mode, work) {
  try {
    const database = await opened();
    await new Promise((done, fail) => {
      const change = database.transaction(STORE, mode);
      change.oncomplete = done;
      change.onerror = change.onabort = () => fail(change.error);
      work(change.objectStore(STORE));
    });
    database.close();
  } catch (error) {
    console.info("photos are not kept for a reload:", error?.message);
  }
}

function opened() {
  return new Promise((done, fail) => {
    const request = indexedDB.open("mmgem", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" }).createIndex("at", "at");
    request.onsuccess = () => done(request.result);
    request.onerror = request.onblocked = () => fail(request.error);
  });
}
