"use strict";
(() => {
  for (const task of document.querySelectorAll(".task")) {
    const filters = task.querySelector(".filters");
    if (!filters) continue;
    const search = filters.querySelector('input[type="search"]');
    const boxes = [...filters.querySelectorAll('input[type="checkbox"]')];
    const count = filters.querySelector("output");
    const questions = [...task.querySelectorAll(".question")];
    const texts = new Map();
    const textOf = (question) => {
      if (!texts.has(question)) texts.set(question, question.textContent.toLowerCase());
      return texts.get(question);
    };
    const filter = () => {
      const words = search.value.toLowerCase().trim();
      let shown = 0;
      for (const question of questions) {
        const kept = boxes.every((box) => !box.checked || question.dataset[box.name] === "1")
          && (words === "" || textOf(question).includes(words));
        question.hidden = !kept;
        shown += kept;
      }
      const all = questions.length.toLocaleString("en");
      count.textContent = shown === questions.length ? `${all} shown` : `${shown.toLocaleString("en")} of ${all} shown`;
    };
    search.addEventListener("input", filter);
    for (const box of boxes) box.addEventListener("change", filter);
    filter();
  }
})();
