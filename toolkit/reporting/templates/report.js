"use strict";
(() => {
  const root = document.documentElement;
  const button = document.querySelector("#theme");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const show = (theme) => {
    root.dataset.theme = theme;
    button.textContent = theme === "dark" ? "Light mode" : "Dark mode";
  };
  let chosen = false;
  show(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => { if (!chosen) show(dark.matches ? "dark" : "light"); });
  button.hidden = false;
  button.addEventListener("click", () => { chosen = true; show(root.dataset.theme === "dark" ? "light" : "dark"); });

  for (const list of document.querySelectorAll("[data-examples]")) {
    const cards = [...list.querySelectorAll(".card")];
    const order = cards.slice();
    const buttons = [...list.querySelectorAll("button[data-filter]")];
    const status = list.querySelector("[role=status]");
    const holder = list.querySelector(".cards");
    const apply = (filter) => {
      let shown = 0;
      for (const card of cards) {
        const fits = filter === "all" || card.dataset.tags.split(" ").includes(filter);
        card.hidden = !fits;
        shown += fits ? 1 : 0;
      }
      const sorted = filter === "worst"
        ? order.slice().sort((a, b) => Number(a.dataset.worst) - Number(b.dataset.worst)) : order;
      holder.append(...sorted);
      for (const one of buttons) one.setAttribute("aria-pressed", String(one.dataset.filter === filter));
      status.textContent = `${shown} of ${cards.length} examples shown`;
    };
    for (const one of buttons) one.addEventListener("click", () => apply(one.dataset.filter));
    list.querySelector(".filters").hidden = false;
    apply("all");
  }
  window.addEventListener("beforeprint", () => {
    for (const one of document.querySelectorAll("details[data-print]")) one.open = true;
  });
})();
