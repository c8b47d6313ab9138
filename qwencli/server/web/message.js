// The views of a question and of an answer.
import { copyButton, el, icon, iconButton, visible } from "./dom.js";
import { Markdown } from "./markdown.js";

const count = new Intl.NumberFormat("en");
const REASONS = new Map([["length", "cut off at the token limit"], ["stopped", "stopped"]]);
const seconds = (ms) => (ms < 995 ? `${Math.ceil(ms)} ms` : `${(ms / 1000).toFixed(ms < 9950 ? 1 : 0)} s`);

// "‹ 2/3 ›": switches between the versions of a message.
class Switcher {
  constructor(actions) {
    this.node = el("span", { class: "switcher", hidden: true });
    this.actions = actions;
  }

  show(siblings, message) {
    const at = siblings.indexOf(message);
    this.node.hidden = siblings.length < 2;
    const button = (name, label, to) => iconButton(name, label, () => this.actions.choose(siblings[to]), { disabled: !siblings[to] });
    const before = button("left", "Previous version", at - 1), after = button("right", "Next version", at + 1);
    this.node.replaceChildren(before, `${at + 1}/${siblings.length}`, after);
  }
}

export class Question {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.switcher = new Switcher(actions);
    this.body = el("div", { class: "question-text" }, visible(message.content));
    const edit = iconButton("edit", "Edit", () => this.#edit());
    this.tools = el("div", { class: "tools" }, this.switcher.node, copyButton(() => message.content), edit);
    this.node = el("article", { class: "question", "aria-label": "Question" }, this.body, this.tools);
  }

  #edit() {
    const area = el("textarea", { "aria-label": "Edit the question", dir: "auto" });
    area.value = this.message.content;
    const close = () => this.node.replaceChildren(this.body, this.tools);
    const send = () => {
      close();
      if (area.value.trim() && area.value !== this.message.content) this.actions.edit(this.message, area.value);
    };
    area.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Escape") close();
      else if (event.key === "Enter" && !event.shiftKey) send();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    const buttons = el("div", { class: "edit-buttons" },
      el("button", { type: "button", class: "button plain", onclick: close }, "Cancel"),
      el("button", { type: "button", class: "button", onclick: send }, "Send"));
    this.node.replaceChildren(area, buttons);
    area.focus();
  }
}

// Growing text, shown as Markdown in a node.
class Growing {
  #written = 0;

  constructor(node) {
    this.markdown = new Markdown(node);
  }

  update(text, complete) {
    if (text.length > this.#written) this.markdown.write(text.slice(this.#written));
    this.#written = text.length;
    if (complete) this.markdown.end();
  }
}

export class Answer {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.switcher = new Switcher(actions);
    this.summary = el("summary");
    this.thoughts = el("div", { class: "answer-text thoughts" });
    this.details = el("details", { class: "thinking", hidden: true, ontoggle: () => this.update(this.run) }, this.summary, this.thoughts);
    this.body = el("div", { class: "answer-text" });
    this.error = el("div", { class: "error", role: "alert", hidden: true });
    this.stats = el("span", { class: "stats" });
    this.buttons = el("span", { class: "buttons" },
      copyButton(() => message.content),
      iconButton("again", "Answer again", () => actions.again(message)));
    this.tools = el("div", { class: "tools" }, this.switcher.node, this.buttons, this.stats);
    this.node = el("article", { class: "answer", "aria-label": "Answer" }, this.details, this.body, this.error, this.tools);
    this.content = new Growing(this.body);
    this.reasoning = new Growing(this.thoughts);
  }

  // Updates the page from the message. run: the run that writes it, or null.
  update(run) {
    const { message } = this;
    this.run = run;
    this.node.setAttribute("aria-busy", String(Boolean(run))); // screen readers read it when it is complete
    this.node.classList.toggle("waiting", Boolean(run?.waiting));
    this.details.hidden = !message.reasoning?.trim(); // some models send an empty line
    if (message.reasoning) {
      const time = run ? run.thinkingMs() : message.thinkingMs;
      setText(this.summary, run?.thinking ? `Thinking, ${Math.floor(time / 1000)} s` : time ? `Thought for ${seconds(time)}` : "Thoughts");
      this.details.classList.toggle("busy", Boolean(run?.thinking));
      if (this.details.open) this.reasoning.update(message.reasoning, !run);
    }
    this.content.update(message.content, !run);
    setText(this.stats, run ? this.#progress(run) : statistics(message.stats ?? {}));
    this.#showError(run);
  }

  #progress(run) {
    if (run.waiting) return "Reading …";
    return run.speed ? `${run.speed.toFixed(run.speed < 10 ? 1 : 0)} tokens/s` : "";
  }

  #showError(run) {
    const { content, reasoning, stats } = this.message;
    const nothing = !content && !reasoning && !stats?.reason; // the page was closed before the answer came
    const error = this.message.error ?? (nothing ? { text: "This answer did not arrive." } : null);
    this.error.hidden = Boolean(run) || !error;
    this.buttons.hidden = Boolean(run) || (error && !content);
    if (this.error.hidden) return;
    const wait = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : "";
    const retry = () => this.actions.retry(this.message);
    const again = el("button", { type: "button", class: "button plain", onclick: retry }, icon("again"), "Try again");
    this.error.replaceChildren(el("p", {}, sentence(visible(error.text.slice(0, 1000))) + wait), again);
  }
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text; // avoids a needless layout
}

function statistics({ tokens, speed, first, prompt, cached, reason }) {
  const parts = [];
  if (tokens) parts.push(`${count.format(tokens)} ${tokens === 1 ? "token" : "tokens"}`);
  if (speed) parts.push(`${speed < 100 ? speed.toFixed(1) : count.format(Math.round(speed))} tokens/s`);
  if (first) parts.push(`first after ${seconds(first * 1000)}`);
  if (prompt) parts.push(`prompt ${count.format(prompt)}${cached ? `, ${count.format(cached)} cached` : ""}`);
  if (REASONS.has(reason)) parts.push(REASONS.get(reason));
  return parts.join(" · ");
}
