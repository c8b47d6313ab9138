// The parts of the server view. They are updated in place, so that nothing flickers and the user's selection is kept.
import { el, svg, visible } from "./dom.js";

const STEPS = 90; // points of a curve

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// A large number, optionally with a curve of its last values.
export class Figure {
  #values = [];

  constructor(name, unit, curve = false) {
    this.value = el("span", { class: "value" }, "–");
    this.node = el("section", { class: "figure", "aria-label": name },
      el("h2", {}, name), el("p", {}, this.value, " ", el("span", { class: "unit" }, unit)));
    if (!curve) return;
    this.line = svg("polyline", {});
    const size = { viewBox: `0 0 ${STEPS - 1} 20`, preserveAspectRatio: "none" };
    this.node.append(svg("svg", { class: "curve", "aria-hidden": "true", ...size }, this.line));
  }

  show(text, value = null) {
    setText(this.value, text);
    if (!this.line || value === null) return;
    this.#values = [...this.#values, value].slice(-STEPS);
    const highest = Math.max(...this.#values, 1e-9);
    const left = STEPS - this.#values.length;
    this.line.setAttribute("points", this.#values.map((v, i) => `${left + i},${(19 - (18 * v) / highest).toFixed(2)}`).join(" "));
  }
}

// A table of names and values.
export class Table {
  constructor(title) {
    this.list = el("dl");
    this.node = el("section", { "aria-label": title, hidden: true }, el("h2", {}, title), this.list);
  }

  show(rows) {
    this.node.hidden = !rows.length;
    while (this.list.childElementCount > 2 * rows.length) this.list.lastChild.remove();
    while (this.list.childElementCount < 2 * rows.length) this.list.append(el("dt"), el("dd"));
    rows.flat().forEach((text, i) => setText(this.list.children[i], visible(String(text))));
  }
}

// Tokens that a slot has written, and tokens of its prompt that it has read. In old versions of llama.cpp next_token is not a list.
export const written = (slot) => (slot.is_processing && [slot.next_token].flat()[0]?.n_decoded) || 0;
export const read = (slot) => (slot.is_processing && slot.n_prompt_tokens_processed) || 0;

// The server's slots, one line each.
export class Slots {
  constructor() {
    this.body = el("tbody");
    const head = ["Slot", "State", "Prompt", "From cache", "Written"].map((name) => el("th", { scope: "col" }, name));
    this.node = el("section", { class: "slots", "aria-label": "Slots" }, el("h2", {}, "Slots"),
      el("div", { class: "table", tabindex: "0" }, el("table", {}, el("thead", {}, el("tr", {}, ...head)), this.body)));
  }

  show(slots) {
    while (this.body.childElementCount > slots.length) this.body.lastChild.remove();
    while (this.body.childElementCount < slots.length) this.body.append(el("tr", {}, ...Array.from({ length: 5 }, () => el("td"))));
    slots.forEach((slot, i) => {
      const row = this.body.children[i];
      row.classList.toggle("busy", Boolean(slot.is_processing));
      this.#texts(slot).forEach((text, column) => setText(row.children[column], text));
    });
  }

  #texts(slot) {
    if (!slot.is_processing) return [String(slot.id), "free", "", "", ""];
    const cached = slot.n_prompt_tokens_cache ?? 0, total = slot.n_prompt_tokens ?? 0, done = cached + read(slot);
    const prompt = done < total && !written(slot) ? `${done} of ${total}` : String(total);
    return [String(slot.id), written(slot) ? "writing" : "reading", prompt, String(cached), String(written(slot))];
  }
}
