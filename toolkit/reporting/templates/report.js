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
    const buttons = [...list.querySelectorAll("button[data-filter]")];
    const status = list.querySelector("[role=status]");
    const holder = list.querySelector(".cards");
    const more = list.querySelector(".more");
    const FIRST = 12;
    let filter = "all";
    let all = false;
    const apply = () => {
      const fitting = (filter === "worst"
        ? cards.slice().sort((a, b) => Number(a.dataset.worst) - Number(b.dataset.worst))
        : cards).filter((card) => filter === "all" || card.dataset.tags.split(" ").includes(filter));
      const shown = new Set(all ? fitting : fitting.slice(0, FIRST));
      for (const card of cards) card.hidden = !shown.has(card);
      holder.append(...fitting);
      for (const one of buttons) one.setAttribute("aria-pressed", String(one.dataset.filter === filter));
      status.textContent = `${shown.size} of ${fitting.length} examples shown`;
      more.hidden = shown.size === fitting.length;
      more.textContent = `Show ${fitting.length - shown.size} more`;
    };
    const choose = (name) => { filter = name; all = false; apply(); };
    more.addEventListener("click", () => { all = true; apply(); });
    for (const one of buttons) one.addEventListener("click", () => choose(one.dataset.filter));
    list.querySelector(".filters").hidden = false;
    apply();
    window.addEventListener("beforeprint", () => { all = true; apply(); });
  }
  window.addEventListener("beforeprint", () => {
    for (const one of document.querySelectorAll("details[data-print]")) one.open = true;
  });
})();
