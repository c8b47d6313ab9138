// The browser's storage: localStorage has a key for each conversation, and one for the settings.
import { asConversation } from "./conversation.js";

const PREFIX = "qwencli/conversation/";
const SETTINGS = "qwencli/settings";
export const MOST = 200; // conversations
const FORMAT = "qwencli-conversations";

const known = new Map(); // id -> conversation, always the same object, since an answer may still be writing to it

function read(id) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + id));
  } catch {
    return null; // not ours
  }
}

// All conversations, the latest first.
export function all() {
  const ids = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX)).map((key) => key.slice(PREFIX.length));
  return ids.map(get).filter((conversation) => conversation?.messages).sort((a, b) => b.updated - a.updated);
}

export function get(id) {
  if (!known.has(id)) {
    const conversation = read(id);
    if (!conversation) return null;
    known.set(id, conversation);
  }
  return known.get(id);
}

// Returns a message for the user if the conversation could not be saved, else "".
export function save(conversation) {
  const isNew = localStorage.getItem(PREFIX + conversation.id) === null;
  known.set(conversation.id, conversation);
  if (isNew && all().length >= MOST) {
    return `The browser keeps ${MOST} conversations at most, so this one will be lost when the page is closed. Delete some first.`;
  }
  try {
    localStorage.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
    return "";
  } catch {
    return "The browser has no more room, so new messages will be lost when the page is closed. Export or delete conversations.";
  }
}

export function remove(conversation) {
  known.delete(conversation.id);
  localStorage.removeItem(PREFIX + conversation.id);
}

// Calls changed(id) when another tab has changed a conversation.
export function onChangeElsewhere(changed) {
  window.addEventListener("storage", ({ key }) => {
    if (!key?.startsWith(PREFIX)) return;
    const id = key.slice(PREFIX.length);
    known.delete(id);
    changed(id);
  });
}

export const exported = (conversations) => JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);

// Reads the conversations from a file that `exported` wrote.
export function imported(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("The file is not JSON.");
  }
  if (file?.format !== FORMAT || !Array.isArray(file.conversations)) throw new Error("The file has no exported conversations.");
  return file.conversations.map(asConversation).filter(Boolean);
}

export function settings() {
  try {
    return JSON.parse(localStorage.getItem(SETTINGS)) ?? {};
  } catch {
    return {};
  }
}

export function saveSettings(values) {
  try {
    localStorage.setItem(SETTINGS, JSON.stringify(values));
  } catch {
    // no room: the settings are kept until the page is closed
  }
}
