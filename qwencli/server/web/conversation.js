// A conversation is a tree of messages: editing a question or generating an answer again starts a new branch.
//
// {id, title, created, updated, leaf, messages: [{id, parent, role, content, ...}]}; `leaf` ends the branch that is shown.
// Answers also have reasoning, thinkingMs, stats ({tokens, speed, first, prompt, cached, reason}) and error.

// crypto.randomUUID exists only on https and localhost.
export const newId = () => [...crypto.getRandomValues(new Uint8Array(9))].map((byte) => byte.toString(36).padStart(2, "0")).join("");

export function newConversation() {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, leaf: null, messages: [] };
}

export function addMessage(conversation, parent, message) {
  const added = { id: newId(), parent, content: "", ...message };
  conversation.messages.push(added);
  conversation.leaf = added.id;
  conversation.updated = Date.now();
  conversation.title ||= message.content.trim().split("\n")[0].slice(0, 60);
  return added;
}

export function removeMessage(conversation, message) {
  conversation.messages = conversation.messages.filter((other) => other !== message);
  conversation.leaf = message.parent;
}

const find = (conversation, id) => conversation.messages.find((message) => message.id === id);

// The messages from the first to `id`.
export function path(conversation, id = conversation.leaf) {
  const messages = [];
  for (let at = find(conversation, id); at; at = find(conversation, at.parent)) messages.unshift(at);
  return messages;
}

// The versions of a message, itself included, in order.
export const siblings = ({ messages }, { parent, role }) => messages.filter((other) => other.parent === parent && other.role === role);

// Selects the branch through the message, down to its latest end.
export function choose(conversation, message) {
  let end = message;
  for (let next = message; next; next = conversation.messages.findLast((other) => other.parent === end.id)) end = next;
  conversation.leaf = end.id;
}

// The messages of a request, up to `last`.
export function asRequest(conversation, last, system) {
  const messages = path(conversation, last.id).filter((message) => message.content);
  const turns = messages.map(({ role, content }) => ({ role, content }));
  return system.trim() ? [{ role: "system", content: system }, ...turns] : turns;
}

const text = (value, longest = Infinity) => (typeof value === "string" ? value.slice(0, longest) : "");
const number = (value) => (Number.isFinite(value) ? value : 0);

function asStats(value) {
  const numbers = ["tokens", "speed", "first", "prompt", "cached"].map((name) => [name, number(value?.[name])]);
  return { ...Object.fromEntries(numbers), reason: text(value?.reason, 20) };
}

// Reads a conversation from a file, which may hold anything: whatever is invalid is left out. null: not a conversation.
export function asConversation(value) {
  if (!Array.isArray(value?.messages)) return null;
  const messages = [];
  const ids = new Set();
  for (const message of value.messages) {
    const id = text(message?.id, 64);
    if (!id || ids.has(id) || !["user", "assistant"].includes(message.role)) continue;
    const parent = message.parent === null || ids.has(message.parent) ? message.parent : undefined; // parents come first: no cycles
    if (parent === undefined) continue;
    ids.add(id);
    const { role, content, reasoning, thinkingMs } = message;
    const answer = { reasoning: text(reasoning), thinkingMs: number(thinkingMs), stats: asStats(message.stats) };
    messages.push({ id, parent, role, content: text(content), ...answer });
  }
  if (!messages.length) return null;
  const leaf = ids.has(value.leaf) ? value.leaf : messages.at(-1).id;
  const { created, updated } = value;
  return { id: newId(), title: text(value.title, 200), created: number(created), updated: number(updated), leaf, messages };
}
