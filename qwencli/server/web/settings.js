// The settings: a form. A field that is empty leaves the value to the server.
import { byId } from "./dom.js";
import * as store from "./store.js";

const NUMBERS = ["temperature", "top_k", "top_p", "min_p", "repeat_penalty", "max_tokens", "seed"]; // named as in requests

const form = byId("settings-form");

export function start() {
  const dialog = byId("settings");
  const values = store.settings();
  for (const field of form.elements) if (field.name && typeof values[field.name] === "string") field.value = values[field.name];
  form.addEventListener("input", () => {
    mark();
    store.saveSettings(Object.fromEntries(new FormData(form)));
  });
  byId("settings-reset").addEventListener("click", () => {
    form.reset();
    store.saveSettings({});
    mark();
  });
  byId("settings-open").addEventListener("click", () => dialog.showModal());
  byId("settings-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // a click outside of it
  mark();
}

// Marks the button if something is set.
function mark() {
  byId("settings-open").classList.toggle("marked", [...new FormData(form).values()].some(Boolean));
}

export const system = () => form.elements.system.value;

// The fields of a request. Values out of range are left out; their fields show it.
export function sampling() {
  const fields = {};
  for (const name of NUMBERS) {
    const field = form.elements[name];
    if (field.value !== "" && field.validity.valid) fields[name] = field.valueAsNumber;
  }
  const thinking = form.elements.thinking.value;
  if (thinking) fields.chat_template_kwargs = { enable_thinking: thinking === "on" };
  return fields;
}
