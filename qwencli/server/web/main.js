// Sets up the page: the views, the keyboard shortcuts, the name of the model.
import { getJson } from "./api.js";
import { askForKey } from "./auth.js";
import { Chat } from "./chat.js";
import { newConversation } from "./conversation.js";
import { byId } from "./dom.js";
import { ServerView } from "./server.js";
import * as settings from "./settings.js";
import { Sidebar } from "./sidebar.js";
import * as store from "./store.js";

let model = "default";

const sidebar = new Sidebar({
  deleted: (conversation) => chat.stopAndForget(conversation),
  running: (conversation) => chat.isRunning(conversation),
});

const chat = new Chat({
  model: () => model,
  changed() {
    const here = `#c-${chat.conversation.id}`;
    if (chat.conversation.messages.length && !onServer() && location.hash !== here) history.replaceState(null, "", here);
    byId("tab-chat").href = here;
    sidebar.show(onServer() ? null : chat.conversation);
  },
});

const server = new ServerView(byId("server"));

const onServer = () => location.hash === "#server";

// The URL's hash decides what is shown: #server, #c-<conversation>, or anything else for a new conversation.
function route() {
  const isServer = onServer();
  byId("chat").hidden = isServer;
  byId("server").hidden = !isServer;
  byId("settings-open").hidden = isServer;
  server.setShown(isServer);
  byId("tab-chat").toggleAttribute("aria-current", !isServer);
  byId("tab-server").toggleAttribute("aria-current", isServer);
  sidebar.toggle(false);
  if (!isServer) {
    const id = location.hash.startsWith("#c-") ? location.hash.slice(3) : "";
    chat.open(id === chat.conversation.id ? chat.conversation : (store.get(id) ?? newConversation()));
    byId("tab-chat").href = id ? location.hash : "#new";
    if (matchMedia("(pointer: fine)").matches) chat.focus();
  }
  sidebar.show(isServer ? null : chat.conversation);
}

function onKey(event) {
  const typing = event.target.matches("input, textarea, select");
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") location.hash = "new";
  else if (event.key === "Escape" && chat.running && !byId("settings").open) chat.stop();
  else if (event.key === "Escape") return sidebar.toggle(false);
  else if (event.key === "/" && !typing && !onServer() && !byId("settings").open) chat.focus();
  else return;
  event.preventDefault();
}

async function findModel() {
  try {
    const { data } = await getJson("v1/models");
    model = data?.[0]?.id ?? model;
    byId("model").textContent = data?.[0]?.id ?? "";
  } catch (error) {
    if (error.status === 401) askForKey(findModel);
  }
}

settings.start();
window.addEventListener("hashchange", route);
document.addEventListener("keydown", onKey);
store.onChangeElsewhere((id) => {
  if (id !== chat.conversation.id) sidebar.show(chat.conversation);
  else if (!chat.running) route();
});
route();
findModel();
