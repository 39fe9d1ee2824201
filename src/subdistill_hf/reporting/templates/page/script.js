"use strict";

// Tables: a click on a heading, or Enter on it, sorts by its column; the same again turns the order round.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  if (body.rows.length < 3) continue;
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const numbers = heading.classList.contains("number");
      const before = heading.getAttribute("aria-sort");
      const descending = before === "ascending" || (before === null && numbers);
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const known = (row) => !numbers || row.cells[column].dataset.sort !== undefined;
      const compare = (one, other) => numbers
        ? one.cells[column].dataset.sort - other.cells[column].dataset.sort
        : one.cells[column].textContent.localeCompare(other.cells[column].textContent, "en", { numeric: true });
      const rows = [...body.rows].filter(known).sort(compare);
      if (descending) rows.reverse();
      body.append(...rows, ...[...body.rows].filter((row) => !known(row)));
    });
  });
}

// Heat maps: one image at a time, with buttons and arrow keys.
for (const group of document.querySelectorAll(".steps")) {
  const steps = [...group.querySelectorAll(".step")];
  const control = group.querySelector(".control");
  if (steps.length < 2) continue;
  let shown = 0;
  const show = (number) => {
    shown = (number + steps.length) % steps.length;
    steps.forEach((step, place) => { step.hidden = place !== shown; });
    control.querySelector("output").value = `Image ${shown + 1} of ${steps.length}`;
  };
  control.hidden = false;
  show(0);
  for (const button of control.querySelectorAll("button")) {
    button.addEventListener("click", () => show(shown + Number(button.dataset.step)));
  }
  control.addEventListener("keydown", ({ key }) => {
    if (key === "ArrowRight") show(shown + 1);
    if (key === "ArrowLeft") show(shown - 1);
  });
}

// The section that is read is marked in the list of sections.
const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const seen = new Set();
const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) seen[isIntersecting ? "add" : "delete"](target.id);
  const current = [...links.keys()].find((name) => seen.has(name));
  for (const [name, link] of links) {
    if (name === current) link.setAttribute("aria-current", "true");
    else link.removeAttribute("aria-current");
  }
}, { rootMargin: "-10% 0px -60% 0px" });
for (const section of document.querySelectorAll("main > section")) watcher.observe(section);
