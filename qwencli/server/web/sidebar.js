// The list of conversations. The open one can be renamed, exported and deleted.
import { byId, download, el } from "./dom.js";
import { notify } from "./notices.js";
import * as store from "./store.js";

const titleOf = (conversation) => conversation.title || "Untitled";
const today = () => new Date().toISOString().slice(0, 10);

export class Sidebar {
  // deleted(conversation): called before one is removed. running(conversation): whether it is being answered.
  constructor({ deleted, running }) {
    this.deleted = deleted;
    this.running = running;
    this.current = null;
    byId("export-all").addEventListener("click", () => download(`qwencli-${today()}.json`, store.exported(store.all())));
    byId("import").addEventListener("click", () => byId("import-file").click());
    byId("import-file").addEventListener("change", (event) => this.#import(event.target));
    for (const id of ["menu-open", "menu-close", "shade"]) byId(id).addEventListener("click", () => this.toggle(id === "menu-open"));
  }

  // On a phone the list covers the page.
  toggle(open) {
    document.body.classList.toggle("menu", open);
    byId("shade").hidden = !open;
    if (open) byId("menu-close").focus();
  }

  show(current) {
    this.current = current;
    const rows = store.all().map((conversation) => this.#row(conversation));
    byId("conversations").replaceChildren(...rows);
    byId("export-all").disabled = !rows.length;
  }

  #row(conversation) {
    const open = conversation.id === this.current?.id;
    const link = el("a", { href: `#c-${conversation.id}`, "aria-current": open && "true", dir: "auto" }, titleOf(conversation));
    const row = el("div", { class: `row${open ? " open" : ""}${this.running(conversation) ? " running" : ""}` }, link);
    if (open) {
      const button = (label, onclick) => el("button", { type: "button", class: "link", onclick }, label);
      row.append(el("div", { class: "row-tools" },
        button("Rename", () => this.#rename(conversation, row)),
        button("Export", () => download(`qwencli-${conversation.id}.json`, store.exported([conversation]))),
        button("Delete", () => this.#delete(conversation))));
    }
    return row;
  }

  #rename(conversation, row) {
    const input = el("input", { value: conversation.title, maxlength: "200", "aria-label": "Title", dir: "auto" });
    const done = (keep) => {
      if (keep && input.value.trim()) conversation.title = input.value.trim();
      store.save(conversation);
      this.show(this.current);
    };
    input.addEventListener("keydown", (event) => {
      if (event.isComposing || !["Enter", "Escape"].includes(event.key)) return;
      event.stopPropagation();
      input.value = event.key === "Enter" ? input.value : "";
      input.blur();
    });
    input.addEventListener("blur", () => done(true), { once: true });
    row.replaceChildren(input);
    input.select();
  }

  #delete(conversation) {
    this.deleted(conversation);
    store.remove(conversation);
    this.show(null);
    location.hash = "new";
    notify(`“${titleOf(conversation)}” was deleted.`, "Undo", () => {
      store.save(conversation);
      location.hash = `c-${conversation.id}`;
    });
  }

  async #import(input) {
    const [file] = input.files;
    try {
      const conversations = store.imported(await file.text());
      const problem = conversations.map(store.save).find(Boolean);
      notify(problem ?? `${conversations.length} imported.`);
    } catch (error) {
      notify(error.message);
    }
    input.value = ""; // so that the same file can be chosen again
    this.show(this.current);
  }
}
