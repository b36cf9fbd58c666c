document.documentElement.classList.add("js");

// Enlarge: the same frame, boxes included, with the largest picture of the photo that the page has.
const view = document.querySelector("dialog");
const zooms = () => [...document.querySelectorAll(".zoom")].filter((b) => b.offsetParent);
let shown = null;
function show(button) {
  shown = button;
  const frame = button.querySelector(".frame").cloneNode(true);
  const image = frame.querySelector("img");
  const large = image && document.querySelector(`.large img[data-photo="${image.dataset.photo}"]`);
  if (large) image.src = large.src;
  const text = document.createElement("p");
  text.textContent = button.dataset.caption || "";
  view.replaceChildren(frame, text);
  if (!view.open) view.showModal();
}
document.addEventListener("click", (event) => {
  const button = event.target.closest(".zoom");
  if (button) show(button);
});
view.addEventListener("click", () => view.close());
view.addEventListener("close", () => shown && shown.focus());
view.addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const all = zooms();
  show(all[(all.indexOf(shown) + step + all.length) % all.length]);
});

// Filter the wall: every word typed must occur in the card's text or file name.
const filter = document.querySelector(".filter");
if (filter) {
  const cards = [...document.querySelectorAll(".card")];
  const texts = cards.map((card) => `${card.textContent} ${card.dataset.name}`.toLowerCase());
  const count = filter.querySelector("output");
  filter.hidden = false;
  filter.querySelector("input").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    cards.forEach((card, i) => {
      card.hidden = !words.every((word) => texts[i].includes(word));
      left += !card.hidden;
    });
    count.textContent = words.length ? `${left} of ${cards.length}` : "";
  });
}

const copy = document.querySelector(".copy");
if (copy && navigator.clipboard) {
  copy.hidden = false;
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(
      [...document.querySelectorAll("pre span")].map((line) => line.textContent).join("\n"),
    );
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  });
}
