"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  // Colors: what was chosen is remembered where the browser allows it, which it need not do for a file.
  const themes = [...document.querySelectorAll('input[name="theme"]')];
  const remembered = () => { try { return localStorage.getItem("loraga-theme"); } catch { return null; } };
  const remember = (value) => { try { localStorage.setItem("loraga-theme", value); } catch { /* not allowed */ } };
  const stored = themes.find((item) => item.value === remembered());
  if (stored) stored.checked = true;
  const changed = () => document.dispatchEvent(new Event("themechange"));
  for (const item of themes) item.addEventListener("change", () => { remember(item.value); changed(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);

  // Tables that can be sorted: a number in data-value counts in place of the text.
  const collator = new Intl.Collator(undefined, { numeric: true });
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.trim();
    return text === "" || text === "–" ? null : text;
  };
  const compare = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null);
    const difference = Number(a) - Number(b);
    return Number.isNaN(difference) ? collator.compare(a, b) : difference;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      if (!button.textContent.trim()) button.setAttribute("aria-label", "Name");
      heading.append(button);
      button.addEventListener("click", () => {
        const down = heading.getAttribute("aria-sort") === "ascending";
        for (const other of headings) other.removeAttribute("aria-sort");
        heading.setAttribute("aria-sort", down ? "descending" : "ascending");
        const body = table.tBodies[0];
        const rows = [...body.rows].map((row) => [valueOf(row, column), row]);
        // what has no value stays at the end
        rows.sort(([a], [b]) => (down && a !== null && b !== null ? compare(b, a) : compare(a, b)));
        body.append(...rows.map(([, row]) => row));
      });
    });
  }

  // A command that can be copied.
  for (const button of document.querySelectorAll("button.copy")) {
    button.addEventListener("click", async () => {
      const text = document.getElementById(button.dataset.of).textContent;
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        const range = document.createRange();
        range.selectNodeContents(document.getElementById(button.dataset.of));
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }
})();
