// Leaf blocks of Markdown: paragraphs and tables. (Code is in code.js.)
//
// All have `line`; `append` for the rest of a very long line; and `show(growing)`, which updates the page. `reset` goes back to a `mark`:
// the last line of the stream is shown before it is complete, and parsed again when more of it has arrived.
import { el } from "./dom.js";
import { inline } from "./inline.js";

const LONG = 3000; // the most characters of a paragraph that are rendered again with every piece; those before are settled

export class Paragraph {
  #shown = null;

  constructor(parent) {
    this.text = ""; // the part that is not settled
    this.node = parent.appendChild(el("p", {}, el("span")));
  }

  line(line) {
    this.append((this.text && "\n") + line.trimStart());
  }

  append(text) {
    for (let at = 0; at < text.length; at += LONG) {
      if (this.text.length > LONG) this.#settle();
      this.text += text.slice(at, at + LONG);
    }
  }

  // Emphasis seldom goes past the end of a line or sentence.
  #settle() {
    const { text } = this;
    const end = Math.max(text.lastIndexOf("\n"), text.lastIndexOf(". ")) + 1 || text.lastIndexOf(" ") + 1 || text.length - 1;
    this.node.lastChild.replaceChildren(inline(text.slice(0, end)));
    this.node.append(el("span"));
    this.text = text.slice(end);
  }

  // A line that may be the head of a table waits for the next line, which decides it.
  mayBeTable() {
    return this.text.startsWith("|") && this.text.length < 400 && !this.text.includes("\n") && this.node.childElementCount === 1;
  }

  show(growing) {
    const text = growing && this.mayBeTable() ? "" : this.text.trimEnd();
    const shown = `${this.node.childElementCount} ${growing} ${text}`;
    if (this.#shown !== shown) this.node.lastChild.replaceChildren(inline(text, growing));
    this.#shown = shown;
  }

  lastLine() {
    return this.text.slice(this.text.lastIndexOf("\n") + 1);
  }

  // Takes the last line, for the head of a table. A paragraph with nothing else is removed.
  takeLastLine() {
    const line = this.lastLine();
    this.text = this.text.slice(0, -line.length).trimEnd();
    this.show(false);
    if (!this.text && this.node.childElementCount === 1) this.node.remove();
    return line;
  }

  mark() {
    return { text: this.text, settled: this.node.childElementCount };
  }

  reset({ text, settled }) {
    this.text = text;
    if (this.node.childElementCount === settled) return;
    while (this.node.childElementCount > settled) this.node.lastChild.remove();
    this.#shown = null;
  }
}

// | a \| b | c | -> ["a | b", "c"]
const cells = (line) =>
  line.trim().replace(/^\||(?<!\\)\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));

const DASHES = /^:?-+:?$/;

// The alignments given by a row of dashes, or null: `|:--|--:|` -> ["left", "right"].
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
    return el("tr", {}, ...texts.map((text, i) => el(tag, { class: this.aligned[i] ?? "left" }, inline(text))));
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
