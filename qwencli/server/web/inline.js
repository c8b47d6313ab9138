// Markdown inside a block: emphasis, code and links as in CommonMark (https://spec.commonmark.org/0.31.2/#inlines), in linear time.
// Differences: a newline is a line break (models mean it so), HTML other than <br> is text, images are links, and formulas are shown as
// they were written.
import { el, visible } from "./dom.js";

const OPEN_AT_ONCE = 32; // emphasis and brackets: limits the search for an opener and the depth of the DOM
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", "#39": "'" };
const TOKEN = /\\[\s\S]|`+|\$\$|\*+|_+|~+|!?\[|\]|<[^\s<>]{1,2000}>|\bhttps?:\/\/[^\s<>`]+|&#?\w{2,5};| *\n/g;
const ADDRESS = String.raw`<([^<>\n]{0,2000})>|([^\s()<]{0,2000}(?:\([^\s()]{0,2000}\)[^\s()]{0,2000}){0,20})`; // (with balanced brackets)
const LINK_TAIL = new RegExp(String.raw`\(\s*(?:${ADDRESS})(?:\s+(?:"[^"]{0,500}"|'[^']{0,500}'))?\s*\)`, "y");
const PUNCTUATION = /[\p{P}\p{S}]/u;
const SPACE = /\s/;

// text -> DocumentFragment. growing: more text will come, so whatever is not closed yet extends to the end.
export function inline(text, growing = false) {
  if (growing) text = text.replace(/(?:[*_~`]+|\]\([^\s)]*)$/, "");
  return new Inline(text, growing).parse();
}

// The address if a link may have it, else null. Only http and https are allowed.
export function safeUrl(address) {
  try {
    const url = new URL(address);
    return /^https?:$/.test(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

const anchor = (url) => el("a", { href: url, title: url, target: "_blank", rel: "noopener noreferrer" });

class Inline {
  constructor(text, growing) {
    this.text = text;
    this.growing = growing;
    this.out = document.createDocumentFragment();
    this.runs = []; // runs of * _ ~ that may turn out to be emphasis
    this.brackets = []; // [ and ![ that may turn out to begin a link
    this.missing = new Set(); // closers that do not occur in the rest of the text
  }

  parse() {
    const { text } = this;
    let at = 0;
    TOKEN.lastIndex = 0;
    for (let match; (match = TOKEN.exec(text)); TOKEN.lastIndex = at) {
      if (match.index > at) this.put(text.slice(at, match.index));
      const from = match.index;
      at = this.token(match[0], from);
    }
    this.put(text.slice(at));
    this.emphasise(this.runs);
    if (this.growing) this.openToTheEnd();
    this.out.normalize();
    return this.out;
  }

  put(text) {
    const node = document.createTextNode(visible(text));
    this.out.append(node);
    return node;
  }

  // Handles the token at `from`. Returns where to continue.
  token(token, from) {
    const end = from + token.length;
    switch (token[0]) {
      case "\\": return this.backslash(token, from, end);
      case "$": return this.formula("$$", from, end);
      case "`": return this.code(token, from, end);
      case "*": case "_": case "~": this.run(token, from, end); return end;
      case "!": case "[": this.bracket(token); return end;
      case "]": return this.link(end);
      case "<": this.angle(token); return end;
      case "h": return this.bareUrl(token, from);
      case "&": this.put(ENTITIES[token.slice(1, -1)] ?? token); return end;
      default: this.out.append(el("br")); return end; // spaces and a newline
    }
  }

  backslash(token, from, end) {
    const next = token[1];
    if (next === "(") return this.formula("\\)", from, end);
    if (next === "[") return this.formula("\\]", from, end);
    if (next === "\n") this.out.append(el("br"));
    else this.put(/[!-/:-@[-`{-~]/.test(next) ? next : token);
    return end;
  }

  find(closer, from) {
    if (this.missing.has(closer)) return -1;
    const at = this.text.indexOf(closer, from);
    if (at < 0) this.missing.add(closer);
    return at;
  }

  formula(closer, from, end) {
    const at = this.find(closer, end);
    if (at < 0) { this.put(this.text.slice(this.growing ? from : end - 1, end)); return end; }
    this.out.append(el("span", { class: "formula" }, visible(this.text.slice(from, at + 2))));
    return at + 2;
  }

  code(ticks, from, end) {
    const next = this.missing.has(ticks) ? -1 : this.sameTicks(ticks, end);
    if (next < 0) {
      this.missing.add(ticks);
      if (!this.growing || ticks.length > 2) { this.put(ticks); return end; }
    }
    const inner = this.text.slice(end, next < 0 ? undefined : next).replace(/\n/g, " ");
    const padded = /^ .* $/.test(inner) && inner.trim();
    this.out.append(el("code", {}, visible(padded ? inner.slice(1, -1) : inner)));
    return next < 0 ? this.text.length : next + ticks.length;
  }

  sameTicks(ticks, from) {
    const runs = /`+/g;
    runs.lastIndex = from;
    for (let match; (match = runs.exec(this.text)); ) if (match[0] === ticks) return match.index;
    return -1;
  }

  run(token, from, end) {
    const node = this.put(token);
    if (token[0] === "~" ? token.length !== 2 : token.length > 3) return;
    const before = this.text[from - 1] ?? " ", after = this.text[end] ?? " ";
    const left = !SPACE.test(after) && (!PUNCTUATION.test(after) || SPACE.test(before) || PUNCTUATION.test(before));
    const right = !SPACE.test(before) && (!PUNCTUATION.test(before) || SPACE.test(after) || PUNCTUATION.test(after));
    const word = token[0] === "_"; // snake_case is not emphasis
    this.runs.push({
      node, char: token[0], size: token.length, count: token.length,
      opens: left && (!word || !right || PUNCTUATION.test(before)),
      closes: right && (!word || !left || PUNCTUATION.test(after)),
    });
  }

  emphasise(runs) {
    const open = [];
    for (const closer of runs) {
      while (closer.closes && closer.count) {
        const at = open.findLastIndex((opener) => pairs(opener, closer));
        if (at < 0) break;
        open.length = at + 1; // the runs in between stay text
        this.wrap(open[at], closer);
        if (!open[at].count) open.pop();
      }
      if (closer.opens && closer.count && open.push(closer) > OPEN_AT_ONCE) open.shift();
    }
    this.open = open;
  }

  wrap(opener, closer) {
    const count = Math.min(2, opener.count, closer.count);
    const node = el(opener.char === "~" ? "del" : count === 2 ? "strong" : "em");
    moveBetween(opener.node, closer.node, node);
    opener.node.after(node);
    for (const run of [opener, closer]) {
      run.count -= count;
      run.node.data = run.node.data.slice(count);
    }
  }

  openToTheEnd() {
    for (const opener of this.open.reverse()) {
      if (opener.char !== "*" || opener.count > 2 || opener.node.parentNode !== this.out) continue;
      const node = el(opener.count === 2 ? "strong" : "em");
      moveBetween(opener.node, null, node);
      opener.node.replaceWith(node);
    }
  }

  bracket(token) {
    this.brackets.push({ node: this.put(token), image: token[0] === "!", usable: true, runs: this.runs.length });
    if (this.brackets.length > OPEN_AT_ONCE) this.brackets.shift();
  }

  link(end) {
    const opener = this.brackets.pop();
    LINK_TAIL.lastIndex = end;
    const tail = opener?.usable ? LINK_TAIL.exec(this.text) : null;
    const url = tail && safeUrl(tail[1] ?? tail[2]);
    if (!url) { this.put("]"); return end; }
    this.emphasise(this.runs.splice(opener.runs));
    const node = anchor(url);
    moveBetween(opener.node, null, node);
    opener.node.replaceWith(node);
    if (!node.textContent) node.append(url);
    if (!opener.image) for (const other of this.brackets) other.usable &&= other.image; // no link inside a link
    return LINK_TAIL.lastIndex;
  }

  angle(token) {
    const url = safeUrl(token.slice(1, -1));
    if (url) this.linkTo(url, token.slice(1, -1));
    else if (/^<br\s*\/?>$/i.test(token)) this.out.append(el("br"));
    else this.put(token);
  }

  bareUrl(token, from) {
    let shown = token.replace(/[?!.,:;*_~'"\]]+$/, ""); // punctuation at the end belongs to the sentence
    while (shown.endsWith(")") && shown.split(")").length > shown.split("(").length) shown = shown.slice(0, -1);
    const url = safeUrl(shown);
    if (url && !this.brackets.some((bracket) => bracket.usable)) this.linkTo(url, shown);
    else this.put(shown);
    return from + shown.length;
  }

  linkTo(url, shown) {
    const node = anchor(url);
    node.append(visible(shown));
    this.out.append(node);
  }
}

// CommonMark's rules 9 and 10: *a**b* is a single emphasis.
function pairs(opener, closer) {
  if (opener.char !== closer.char) return false;
  const both = opener.closes || closer.opens;
  return !both || (opener.size + closer.size) % 3 !== 0 || (opener.size % 3 === 0 && closer.size % 3 === 0);
}

function moveBetween(first, last, into) {
  while (first.nextSibling && first.nextSibling !== last) into.append(first.nextSibling);
}
