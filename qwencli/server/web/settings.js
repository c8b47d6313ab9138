// The settings: a form whose empty fields leave the choice to the server.
import { byId } from "./dom.js";
import * as store from "./store.js";

const NUMBERS = ["temperature", "top_k", "top_p", "min_p", "repeat_penalty", "max_tokens", "seed"]; // as the request names them

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
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close()); // outside it
  mark();
}

// Says on the button that something is set.
function mark() {
  byId("settings-open").classList.toggle("marked", [...new FormData(form).values()].some(Boolean));
}

export const system = () => form.elements.system.value;

// The fields of a request. What is out of its range is left out; its field says so.
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
