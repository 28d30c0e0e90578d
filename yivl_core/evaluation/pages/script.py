"""The script of a report's page: it hides and sorts cards, and counts those that are left. Nothing is made of their texts."""

SCRIPT = """
"use strict";
(() => {
  const form = document.getElementById("controls");
  if (!form) return;
  const [list, browse, told, search, order, filters] =
    ["cards", "browse", "told", "search", "order", "filters"].map(id => document.getElementById(id));
  const cards = [...list.children].map(element => ({
    element, marks: new Set(element.dataset.marks.split(" ")), rank: Number(element.dataset.rank), text: null,
  }));
  const byRank = [...cards].sort((a, b) => a.rank - b.rank);
  const plain = text => text.normalize("NFC").toLowerCase().replace(/\\s+/g, " ").trim();
  let sorted = "record";

  // What a card says, without what is missing from answers and without names of its parts.
  const textOf = card => {
    if (card.text === null) {
      const copy = card.element.cloneNode(true);
      copy.querySelectorAll("del, dt, .sign, .pictures").forEach(node => node.remove());
      copy.querySelectorAll("dd, p, summary, br").forEach(node => node.append(" "));
      card.text = plain(copy.textContent);
    }
    return card.text;
  };

  const chosen = () => {
    const kinds = new Map();
    for (const box of form.querySelectorAll("input:checked")) {
      const kind = box.value.split(".")[0];
      kinds.set(kind, [...(kinds.get(kind) || []), box.value]);
    }
    return [...kinds.values()];
  };

  const sort = () => {
    if (order.value === sorted) return;
    sorted = order.value;
    list.append(...(sorted === "worst" ? byRank : cards).map(card => card.element));
  };

  const update = () => {
    const kinds = chosen(), wanted = plain(search.value);
    let shown = 0;
    for (const card of cards) {
      const fits = kinds.every(marks => marks.some(mark => card.marks.has(mark))) && (!wanted || textOf(card).includes(wanted));
      card.element.hidden = !fits;
      shown += fits;
    }
    sort();
    const all = cards.length.toLocaleString("en") + (cards.length === 1 ? " sample" : " samples");
    told.textContent = shown === cards.length ? "All " + all
      : shown ? shown.toLocaleString("en") + " of " + all : "None of " + all + " fits; clear a filter";
  };

  form.addEventListener("input", update);
  form.addEventListener("reset", () => setTimeout(update));
  form.addEventListener("submit", event => event.preventDefault());
  form.hidden = false;
  browse.classList.add("live");
  if (matchMedia("(max-width: 860px)").matches) filters.open = false;
  update();
})();
"""
