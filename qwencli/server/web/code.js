// A block of code that grows line by line.
import { copyButton, el, visible } from "./dom.js";

const PART = 8192; // characters in a part: when code arrives, the browser lays out only the last part again

export class Code {
  #source = ""; // as the model wrote it, for the copy button
  #parts = [];
  #begun = false; // every line but the first is preceded by a newline

  constructor(parent, language, fence, indent) {
    this.fence = fence;
    this.indent = indent;
    this.code = el("code");
    const label = el("span", { class: "language" }, visible(language.slice(0, 24)));
    const bar = el("div", { class: "code-bar" }, label, copyButton(() => this.#source));
    parent.append(el("div", { class: "code" }, bar, el("pre", { tabindex: "0", dir: "ltr" }, this.code)));
  }

  // Whether the line ends the block.
  ends(line) {
    const [, indent, closing] = /^( *)(`{3,}|~{3,})[ \t]*$/.exec(line) ?? [];
    return closing?.startsWith(this.fence) && indent.length <= this.indent + 3;
  }

  line(line) {
    let cut = 0;
    while (cut < this.indent && line[cut] === " ") cut++;
    if (this.#begun) this.append("\n");
    this.#begun = true;
    this.append(line.slice(cut));
  }

  append(text) {
    this.#source += text;
    for (const piece of visible(text).match(/[^]{1,65536}/g) ?? []) {
      const last = this.#parts.at(-1);
      const full = last && (last.data.length > 8 * PART || (last.data.length > PART && last.data.endsWith("\n")));
      if (last && !full) last.appendData(piece);
      else this.#parts.push(this.#newPart(piece));
    }
  }

  #newPart(text) {
    const node = document.createTextNode(text);
    this.code.append(el("span", { class: "part" }, node));
    return node;
  }

  mark() {
    return { begun: this.#begun, source: this.#source.length, parts: this.#parts.length, last: this.#parts.at(-1)?.data.length };
  }

  reset({ begun, source, parts, last }) {
    this.#begun = begun;
    this.#source = this.#source.slice(0, source);
    for (const part of this.#parts.splice(parts)) part.parentNode.remove();
    if (parts) this.#parts.at(-1).data = this.#parts.at(-1).data.slice(0, last);
  }

  show() {}
}
