// Short messages at the bottom of the page, with at most one button.
import { byId, el } from "./dom.js";

export function notify(text, label = "", action = () => {}) {
  const close = () => notice.remove();
  const notice = el("div", { class: "notice" }, text);
  if (label) notice.append(el("button", { type: "button", class: "link", onclick: () => { close(); action(); } }, label));
  byId("notices").replaceChildren(notice);
  setTimeout(close, 8000);
}
