// The chat view: shows a conversation and handles what the user does.
import { askForKey } from "./auth.js";
import { addMessage, asRequest, choose, newConversation, path, removeMessage, siblings } from "./conversation.js";
import { byId } from "./dom.js";
import { Answer, Question } from "./message.js";
import { notify } from "./notices.js";
import { Run } from "./run.js";
import { Follower } from "./scroll.js";
import * as settings from "./settings.js";
import * as store from "./store.js";

const field = byId("question");

export class Chat {
  #views = new Map(); // message -> view
  #runs = new Map(); // conversation -> run: an answer goes on while the user looks at another conversation
  #frame = 0;

  // changed(): called when the list of conversations is out of date. model(): returns the name of the model.
  constructor({ changed, model }) {
    this.changed = changed;
    this.model = model;
    this.conversation = newConversation();
    this.follower = new Follower(byId("scroller"));
    this.actions = {
      edit: (message, content) => this.#ask(content, message.parent),
      again: (message) => this.#answer(message.parent),
      retry: (message) => this.#retry(message),
      choose: (message) => this.#choose(message),
    };
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    byId("stop").addEventListener("click", () => {
      this.stop();
      if (!isPhone()) this.focus(); // the button disappears
    });
    field.addEventListener("keydown", (event) => this.#key(event));
    field.addEventListener("input", fit);
    window.addEventListener("pagehide", () => [...this.#runs.keys()].forEach(store.save));
  }

  open(conversation) {
    if (this.conversation !== conversation) this.#views.clear();
    this.conversation = conversation;
    this.show();
    this.follower.toEnd();
  }

  focus() {
    field.focus();
  }

  send() {
    const content = field.value;
    if (!content.trim() || this.running) return;
    field.value = "";
    fit();
    this.#ask(content, this.conversation.leaf);
    this.follower.toEnd();
  }

  get running() {
    return this.#runs.get(this.conversation);
  }

  stop() {
    this.running?.stop();
  }

  stopAndForget(conversation) {
    this.#runs.get(conversation)?.stop();
    this.#runs.delete(conversation);
  }

  isRunning(conversation) {
    return this.#runs.has(conversation);
  }

  #key(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || isPhone()) return; // phones have no Shift+Enter
    event.preventDefault();
    this.send();
  }

  #ask(content, parent) {
    this.stop();
    this.#answer(addMessage(this.conversation, parent, { role: "user", content }).id);
  }

  #retry(message) {
    removeMessage(this.conversation, message);
    this.#answer(message.parent);
  }

  #choose(message) {
    choose(this.conversation, message);
    this.#save(this.conversation);
    this.show();
  }

  // Starts an answer to the message `parent`.
  async #answer(parent) {
    const { conversation } = this;
    this.#runs.get(conversation)?.stop();
    const message = addMessage(conversation, parent, { role: "assistant" });
    const question = conversation.messages.find(({ id }) => id === parent);
    const request = { model: this.model(), messages: asRequest(conversation, question, settings.system()), ...settings.sampling() };
    const run = new Run(message, request, () => this.#draw());
    this.#runs.set(conversation, run);
    this.#save(conversation);
    this.changed();
    this.show();
    const ticks = setInterval(() => this.#draw(), 500); // the thinking time advances between tokens too
    await run.start();
    clearInterval(ticks);
    this.#end(conversation, run);
  }

  #end(conversation, run) {
    const forgotten = !this.#runs.has(conversation);
    if (this.#runs.get(conversation) === run) this.#runs.delete(conversation);
    if (!forgotten) this.#save(conversation);
    if (this.conversation === conversation) this.show();
    this.changed();
    const { message } = run;
    if (message.error?.status === 401) askForKey(() => this.conversation === conversation && this.#retry(message));
  }

  #save(conversation) {
    const problem = store.save(conversation);
    if (problem) notify(problem);
  }

  // Draws at most once per frame, however fast tokens arrive.
  #draw() {
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      const { running } = this;
      if (!running) return;
      this.#views.get(running.message)?.update(running);
      this.follower.grown();
    });
  }

  // Updates the whole page. Messages that stay are not touched.
  show() {
    const { conversation, running } = this;
    const messages = path(conversation);
    const log = byId("messages");
    const views = messages.map((message) => this.#view(message));
    while (log.lastChild && !views.some(({ node }) => node === log.lastChild)) log.lastChild.remove();
    views.forEach(({ node }, i) => log.children[i] !== node && log.insertBefore(node, log.children[i] ?? null));
    while (log.childElementCount > views.length) log.lastChild.remove();
    messages.forEach((message, i) => {
      views[i].switcher.show(siblings(conversation, message), message);
      if (message.role === "assistant") views[i].update(running?.message === message ? running : null);
    });
    byId("empty").hidden = messages.length > 0;
    byId("send").hidden = Boolean(running);
    byId("stop").hidden = !running;
    document.title = conversation.title ? `${conversation.title} – qwencli` : "qwencli";
    this.follower.grown();
  }

  #view(message) {
    if (!this.#views.has(message)) this.#views.set(message, new (message.role === "user" ? Question : Answer)(message, this.actions));
    return this.#views.get(message);
  }
}

const isPhone = () => matchMedia("(pointer: coarse)").matches;

// Makes the field as high as its text, up to the limit in the style sheet.
function fit() {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}
