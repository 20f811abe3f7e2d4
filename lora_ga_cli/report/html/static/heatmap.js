"use strict";
(() => {
  const LEVELS = 16;
  const read = (id) => JSON.parse(document.getElementById(id)?.textContent ?? "null");

  // The value below the pointer, also for a finger, which shows no title.
  for (const measure of document.querySelectorAll(".measure")) {
    const readout = measure.querySelector(".readout");
    if (!readout) continue;
    let here = null;
    const show = (event) => {
      const cell = event.target.closest(".heat path");
      if (cell === here) return;
      here?.classList.remove("here");
      here = cell;
      here?.classList.add("here");
      readout.textContent = here ? here.querySelector("title").textContent : "\u00a0";
    };
    measure.addEventListener("pointermove", show);
    measure.addEventListener("pointerdown", show);
  }

  // Heatmaps of another rank. Values are shares, in thousandths.
  const paint = (svg, values) => {
    const { low, high } = svg.closest(".measure").dataset;
    const [first, last] = [Number(low), Number(high)];
    svg.querySelectorAll("path").forEach((cell, number) => {
      const value = values[number] === null ? null : values[number] / 1000;
      const title = cell.querySelector("title");
      const next = cell.nextElementSibling;
      const text = next?.matches("text:not([class])") ? next : null;
      const part = last > first ? (value - first) / (last - first) : 0.5;
      const level = Math.min(Math.max(Math.floor(part * LEVELS), 0), LEVELS - 1);
      cell.setAttribute("class", value === null ? "none" : `l${level}`);
      const said = value === null ? "not computed" : `${(100 * value).toFixed(1)}%`;
      title.textContent = `${title.textContent.slice(0, title.textContent.lastIndexOf(": "))}: ${said}`;
      if (text) text.textContent = value === null ? "" : value >= 0.9995 ? "100" : (100 * value).toFixed(1);
    });
  };
  for (const slider of document.querySelectorAll('.rank input[type="range"]')) {
    const section = slider.closest("section");
    const data = read(`data-${slider.dataset.of}`);
    const change = () => {
      const rank = data.ranks[slider.value];
      slider.setAttribute("aria-valuetext", `rank ${rank}`);
      section.querySelector(".rank output").textContent = `r = ${rank}`;
      for (const item of section.querySelectorAll(".chosen-rank")) item.textContent = rank;
      for (const svg of section.querySelectorAll("[data-map]")) {
        const values = data.maps[svg.dataset.map];
        if (values) paint(svg, values[slider.value]);
      }
    };
    slider.addEventListener("input", change);
    if (data.ranks[slider.value] !== data.start) change();
  }
})();
