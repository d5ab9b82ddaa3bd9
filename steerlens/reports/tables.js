"use strict";
// What every page does by itself: sort tables, copy a block, open everything for print.

function sortTable(table) {
  const heads = [...table.querySelectorAll(".columns th")];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const key = (row) => row.cells[column].dataset.order;
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
        return down ? -order : order;
      });
      body.append(...rows);
    });
  });
}

function copyText(button) {
  const source = document.getElementById(button.dataset.copy);
  const label = button.textContent;
  const done = () => { button.textContent = "Copied"; setTimeout(() => { button.textContent = label; }, 1500); };
  const bySelection = () => {
    getSelection().selectAllChildren(source);
    if (document.execCommand("copy")) done();
  };
  if (navigator.clipboard) navigator.clipboard.writeText(source.textContent).then(done, bySelection);
  else bySelection();
}

document.querySelectorAll("table.sortable").forEach(sortTable);
document.querySelectorAll("button[data-copy]").forEach((button) => button.addEventListener("click", () => copyText(button)));
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
