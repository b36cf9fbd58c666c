/** One stop for the Tab key in a wall of photos; in it, arrow keys go to neighbours, Home and End to the ends. */

/** Make the buttons in `container` such a group. */
export function roving(container) {
  container.addEventListener("keydown", (event) => {
    const at = event.target.closest("button.photo");
    if (at === null || event.altKey || event.ctrlKey || event.metaKey) return;
    const to = neighbour([...container.querySelectorAll("button.photo")], at, event.key);
    if (to === undefined) return;
    event.preventDefault();
    focus(to);
  });
  container.addEventListener("focusin", (event) => {
    if (!event.target.matches("button.photo")) return;
    for (const other of container.querySelectorAll('button.photo[tabindex="0"]')) other.tabIndex = -1;
    event.target.tabIndex = 0;
  });
}

/** Let Tab stop at the first button if it stops at none. */
export function anchor(container) {
  const stop = container.querySelector('button.photo[tabindex="0"]') ?? container.querySelector("button.photo");
  if (stop) stop.tabIndex = 0;
}

/** Focus a tile's button and bring it into view. */
export function focus(button) {
  button.focus({ preventScroll: true });
  button.scrollIntoView({ block: "nearest" });
}

function neighbour(buttons, at, key) {
  const index = buttons.indexOf(at);
  if (key === "ArrowRight") return buttons[index + 1];
  if (key === "ArrowLeft") return buttons[index - 1];
  if (key === "Home") return buttons[0];
  if (key === "End") return buttons.at(-1);
  if (key !== "ArrowDown" && key !== "ArrowUp") return undefined;
  const step = key === "ArrowDown" ? "nextElementSibling" : "previousElementSibling";
  const row = at.closest(".row")[step];
  const middle = centre(at);
  const found = [...(row?.querySelectorAll("button.photo") ?? [])];
  return found.sort((a, b) => Math.abs(centre(a) - middle) - Math.abs(centre(b) - middle))[0];
}

function centre(node) {
  const { left, right } = node.getBoundingClientRect();
  return (left + right) / 2;
}
