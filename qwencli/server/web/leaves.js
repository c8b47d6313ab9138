// The leaves of Markdown's tree of blocks: a paragraph, a table. (code.js has the third.)
//
// All take lines; `append` is for the rest of a very long one; `show(growing)` brings the page up to date; `mark` and `reset` take
// back what came since: the stream's last line is shown before it is complete, and read again when it is longer.
import { el } from "./dom.js";
import { inline } from "./inline.js";

export class Paragraph {
  #shown = null;

  constructor(parent) {
    this.text = "";
    this.node = parent.appendChild(el("p", { dir: "auto" }));
  }

  line(line) {
    this.text += (this.text && "\n") + line.trimStart();
  }

  append(text) {
    this.text += text;
  }

  // A line that may be a table's head waits for the next, which says so.
  mayBeTable() {
    return this.text.startsWith("|") && this.text.length < 400 && !this.text.includes("\n");
  }

  show(growing) {
    const text = growing && this.mayBeTable() ? "" : this.text.trimEnd();
    if (this.#shown === text + growing) return;
    this.#shown = text + growing;
    this.node.replaceChildren(inline(text, growing));
  }

  // The last line, for a table's head; the paragraph is gone where there was no other.
  giveLastLine() {
    const at = this.text.lastIndexOf("\n");
    const line = this.text.slice(at + 1);
    this.text = this.text.slice(0, Math.max(at, 0));
    if (this.text) this.show(false);
    else this.node.remove();
    return line;
  }

  mark() {
    return this.text;
  }

  reset(text) {
    this.text = text;
  }
}

// | a \| b | c | -> ["a | b", "c"]
const cells = (line) =>
  line.trim().replace(/^\||(?<!\\)\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));

const DASHES = /^:?-+:?$/;

// The alignments that a row of dashes tells, or null: `|:--|--:|` -> ["left", "right"].
export function alignments(line) {
  if (!/^[\s|:-]+$/.test(line) || !line.includes("-")) return null;
  const dashes = cells(line);
  if (!dashes.every((dash) => DASHES.test(dash))) return null;
  return dashes.map((dash) => (dash.endsWith(":") ? (dash.startsWith(":") ? "center" : "right") : "left"));
}

export const columns = (line) => (line.includes("|") ? cells(line).length : 0);

export class Table {
  constructor(parent, head, aligned) {
    this.aligned = aligned;
    this.body = el("tbody");
    const table = el("table", {}, el("thead", {}, this.#row(head, "th")), this.body);
    parent.append(el("div", { class: "table", tabindex: "0" }, table));
  }

  #row(line, tag) {
    const texts = cells(line);
    while (texts.length < this.aligned.length) texts.push("");
    return el("tr", {}, ...texts.map((text, i) => el(tag, { class: this.aligned[i] ?? "left", dir: "auto" }, inline(text))));
  }

  line(line) {
    this.body.append(this.#row(line, "td"));
  }

  append(text) {
    this.body.lastChild?.lastChild.append(text);
  }

  mark() {
    return this.body.childElementCount;
  }

  reset(rows) {
    while (this.body.childElementCount > rows) this.body.lastChild.remove();
  }

  show() {}
}
