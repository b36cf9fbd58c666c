/** Elements of the page: found by id, and made. */

const EDGE = 8; // pixels between what lies over a photo and the end of the stage

/** The element with this id. */
export const byId = (id) => document.getElementById(id);

/**
 * A new element. `props` are properties of it (`className`, `hidden` ...), functions for its events (`onclick`),
 * attributes where a property of that name does not exist (`aria-label`, `role`); null and undefined are left out.
 */
export function make(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined) continue;
    if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** One of the drawings at the top of index.html. */
export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** Lay `node` over a photo of `width` x `height` pixels at `box`: x0, y0, x1, y1 in its pixels. */
export function place(node, [x0, y0, x1, y1], width, height) {
  node.style.left = `${(100 * x0) / width}%`;
  node.style.top = `${(100 * y0) / height}%`;
  node.style.width = `${(100 * (x1 - x0)) / width}%`;
  node.style.height = `${(100 * (y1 - y0)) / height}%`;
}

/** Move `node`, which lies over the photo of the viewer, so that all of it is seen. */
export function keepInside(node) {
  node.style.transform = "none";
  const [own, room] = [node, byId("stage").parentElement].map((at) => at.getBoundingClientRect());
  const [across, down] = [["left", "right"], ["top", "bottom"]].map(([first, last]) =>
    Math.max(room[first] + EDGE - own[first], Math.min(0, room[last] - EDGE - own[last])));
  node.style.transform = `translate(${across}px, ${down}px)`;
}

/** Whether keys that are typed now go into a field. */
export function typing() {
  const at = document.activeElement;
  return at !== null && (at.tagName === "TEXTAREA" || at.tagName === "SELECT" ||
    (at.tagName === "INPUT" && !["checkbox", "radio", "file"].includes(at.type)));
}
