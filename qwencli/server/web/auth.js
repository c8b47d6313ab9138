// The field for the API key. It is shown after the server has answered 401.
import { key } from "./api.js";
import { byId } from "./dom.js";

const bar = byId("key-bar");
const waiting = new Set(); // functions to call when there is a key

export function askForKey(then) {
  waiting.add(then);
  bar.hidden = false;
  byId("key").focus();
}

bar.addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(byId("key").value.trim());
  byId("key").value = "";
  bar.hidden = true;
  const all = [...waiting];
  waiting.clear();
  for (const then of all) then();
});
