// Turns Markdown into DOM nodes as it streams in.
//
// Blocks are those of CommonMark (https://spec.commonmark.org/0.31.2/#phase-1-block-structure): a line is read once, goes through the
// quotes and lists that are open, and ends in a leaf. Complete blocks are never touched again, so that nothing moves and the time is
// linear. The last, incomplete line is shown too, and taken back when more of it has arrived.
// Differences: no indented code, since indentation counts only inside of lists; no underlined headings; no HTML; all lists are tight.
// GitHub's extensions: tables, whose rows need a bar; task lists; ~~deletions~~.
import { el } from "./dom.js";
import { Code } from "./code.js";
import { inline } from "./inline.js";
import { alignments, columns, Paragraph, Table } from "./leaves.js";

const LONG_LINE = 4000; // an incomplete line with more characters is part of a paragraph, and the rest of it is appended as text
const DEEPEST = 16; // nested quotes and lists; browsers fail at thousands

const FENCE = /^( *)(?:(`{3,})([^`]*)|(~{3,})(.*))$/;
const HEADING = /^ *(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ *([-*_])[ \t]*(?:\1[ \t]*){2,}$/;
const QUOTE = /^ *> ?/;
const ITEM = /^( *)([-*+]|(\d{1,9})[.)])( {1,4}(?! )| (?= {4})|$)/;
const TASK = /^\[([ xX])\] /;
// The beginning of a line that does not determine yet what the line will be.
const UNDECIDED = /^[\s>]*(?:[-+*_=#~`|:\s]*|\d{1,9}[.)]?\s*|[-+*]\s+\[[ xX]?\]?\s*|\|[^\n]{0,300})$/;

const BEGINNING = /^[ \t]*(?:[-+*>]|\d{1,9}[.)])?[ \t]+/; // where tabs count

function withoutTabs(text) {
  let out = "";
  for (const c of text) out += c === "\t" ? " ".repeat(4 - (out.length % 4)) : c;
  return out;
}

export class Markdown {
  #rest = ""; // the incomplete last line
  #inLongLine = false;
  #undo = () => {};

  constructor(root) {
    this.stack = [{ node: root, goesOn: (line) => line }]; // containers: the root, quotes, lists, items
    this.leaf = null;
  }

  write(text) {
    this.#undo();
    this.#undo = () => {};
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop();
    for (const line of lines) this.#endLine(line);
    if (this.#inLongLine || this.#rest.length > LONG_LINE) this.#longLine();
    else if (!this.#undecided()) this.#showLine();
    this.leaf?.show(true);
  }

  end() {
    this.#undo();
    this.#undo = () => {};
    if (this.#rest) this.#endLine(this.#rest);
    this.#rest = "";
    this.#close(1);
  }

  #endLine(line) {
    if (line.endsWith("\r")) line = line.slice(0, -1);
    if (this.#inLongLine) this.#append(line);
    else {
      this.#line(line.slice(0, LONG_LINE));
      if (line.length > LONG_LINE) this.#append(line.slice(LONG_LINE));
    }
    this.#inLongLine = false;
  }

  #longLine() {
    if (this.#inLongLine) this.#append(this.#rest);
    else this.#line(this.#rest);
    this.#inLongLine = true;
    this.#rest = "";
  }

  #append(text) {
    this.leaf ??= new Paragraph(this.#top.node);
    this.leaf.append(text);
  }

  #undecided() {
    if (this.leaf instanceof Code) return /^\s*[`~]*$/.test(this.#rest);
    return UNDECIDED.test(this.#rest) && !(this.leaf instanceof Table && /^\|.*[^\s|:-]/.test(this.#rest));
  }

  // Parses the incomplete last line, and remembers how to undo that: lines only ever add to open containers and the leaf.
  #showLine() {
    const { stack, leaf } = this;
    const mark = leaf?.mark();
    const last = stack.map((container) => container.node.lastChild);
    this.#undo = () => {
      stack.forEach(({ node }, i) => {
        while (node.lastChild !== last[i]) node.lastChild.remove();
      });
      this.stack = stack;
      this.leaf = leaf;
      leaf?.reset(mark);
    };
    this.stack = [...stack];
    this.#line(this.#rest);
  }

  get #top() {
    return this.stack.at(-1);
  }

  #close(depth) {
    this.leaf?.show(false);
    this.leaf = null;
    this.stack.length = depth;
  }

  #open(container) {
    this.#top.node.append(container.node);
    this.stack.push(container);
  }

  #line(line) {
    line = line.replace(BEGINNING, withoutTabs);
    let depth = 1; // how many of the open containers the line belongs to
    for (; depth < this.stack.length; depth++) {
      const inside = this.stack[depth].goesOn(line);
      if (inside === null) break;
      line = inside;
    }
    const inLeaf = depth === this.stack.length;
    if (this.leaf instanceof Code && inLeaf) return this.#codeLine(line);
    if (!line.trim()) return this.#close(depth);
    for (let opened = false; ; opened = true) {
      if (this.#startsLeaf(line, depth)) return;
      const inside = this.#startsContainer(line, depth, opened);
      if (inside === null) return this.#text(line, depth, inLeaf || (!opened && this.leaf instanceof Paragraph));
      line = inside;
      depth = this.stack.length;
      if (!line.trim()) return;
    }
  }

  #codeLine(line) {
    if (this.leaf.ends(line)) this.leaf = null;
    else this.leaf.line(line);
  }

  #startsLeaf(line, depth) {
    let match;
    if ((match = FENCE.exec(line))) {
      this.#leave(depth);
      const [, indent, ticks, language, tildes, ofTildes] = match;
      this.leaf = new Code(this.#top.node, (language ?? ofTildes).trim().split(/\s/)[0], ticks ?? tildes, indent.length);
    } else if (line.length < 1000 && (match = HEADING.exec(line))) {
      this.#leave(depth);
      const text = (match[2] ?? "").trim().replace(/(^|[ \t])#+$/, "");
      this.#top.node.append(el(`h${Math.min(6, match[1].length + 2)}`, {}, inline(text))); // h1 and h2 belong to the page
    } else if (line.length < 1000 && RULE.test(line)) {
      this.#leave(depth);
      this.#top.node.append(el("hr"));
    } else return false;
    return true;
  }

  // Opens the quote or item that the line begins, and returns the rest of the line; or returns null.
  #startsContainer(line, depth, opened) {
    if (depth > DEEPEST) return null;
    const quote = QUOTE.exec(line);
    if (quote) {
      this.#leave(depth);
      this.#open({ node: el("blockquote"), goesOn: (next) => (QUOTE.test(next) ? next.replace(QUOTE, "") : null) });
      return line.slice(quote[0].length);
    }
    const item = ITEM.exec(line);
    const inParagraph = !opened && this.leaf instanceof Paragraph && depth === this.stack.length;
    if (!item || (inParagraph && (!line.slice(item[0].length).trim() || (item[3] && item[3] !== "1")))) return null;
    this.#close(depth);
    return this.#openItem(line, item);
  }

  #openItem(line, [marker, , sign, number]) {
    const kind = sign.at(-1);
    if (this.#top.kind !== kind) {
      this.#leaveList();
      const start = number && number !== "1" ? Number(number) : null;
      this.#open({ node: el(number ? "ol" : "ul", { start }), kind, goesOn: (next) => next });
    }
    const indent = marker.length + (marker.endsWith(" ") ? 0 : 1);
    const node = el("li");
    this.#open({ node, goesOn: (next) => (next.trim() && next.search(/\S/) < indent ? null : next.slice(indent)) });
    const inside = line.slice(marker.length);
    const task = TASK.exec(inside);
    if (!task) return inside;
    node.classList.add("task");
    const [label, box] = task[1] === " " ? ["to do", "☐"] : ["done", "☑"];
    node.append(el("span", { class: "box", role: "img", "aria-label": label }, box));
    return inside.slice(task[0].length);
  }

  #leave(depth) {
    this.#close(depth);
    this.#leaveList();
  }

  #leaveList() {
    if (this.#top.kind) this.stack.pop(); // only items are inside a list
  }

  #text(line, depth, goesOn) {
    if (!goesOn || !this.leaf) this.#leave(depth);
    if (this.leaf instanceof Table && !line.includes("|")) this.#leave(depth);
    const aligned = this.leaf instanceof Paragraph && depth === this.stack.length && alignments(line);
    if (aligned && columns(this.leaf.lastLine()) === aligned.length) {
      this.leaf = new Table(this.#top.node, this.leaf.takeLastLine(), aligned);
      return;
    }
    this.leaf ??= new Paragraph(this.#top.node);
    this.leaf.line(line);
  }
}
