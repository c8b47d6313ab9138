// The server view: what the server is doing now. It polls only while it is visible.
import { getJson, getText } from "./api.js";
import { askForKey } from "./auth.js";
import { el, visible } from "./dom.js";
import { Figure, read, setText, Slots, Table, written } from "./figures.js";
import { parseMetrics } from "./prometheus.js";

const EVERY = 1000, EVERY_PROPS = 10000; // milliseconds

const count = new Intl.NumberFormat("en");
const short = (value) => (value < 99.5 ? value.toFixed(value && value < 9.95 ? 1 : 0) : count.format(Math.round(value)));

// The labels of the cache's metrics, in the order in which they are shown.
const CACHE = {
  kv_cache_tokens: "Tokens kept",
  kv_cache_sequences: "Sequences kept",
  kv_cache_capacity_tokens: "Capacity in tokens",
  prompt_tokens_cached_total: "Prompt tokens taken from it",
};

export class ServerView {
  #shown = false;
  #timer = 0;
  #turn = 0; // of polling: results of an earlier turn are ignored
  #last = null; // {time, prompt, predicted}: the token counts of the last poll
  #props = null;
  #propsTime = 0;
  #off = new Set(); // paths that the server doesn't have, by its options

  constructor(root) {
    this.problem = el("p", { class: "error", role: "alert", hidden: true });
    this.hint = el("p", { class: "hint", hidden: true });
    this.predicted = new Figure("Writing", "tokens/s", true);
    this.prompt = new Figure("Reading prompts", "tokens/s", true);
    this.running = new Figure("Running", "requests");
    this.waiting = new Figure("Waiting", "in the queue");
    this.slots = new Slots();
    this.cache = new Table("Cache");
    this.totals = new Table("Since the start");
    this.model = new Table("Model");
    this.memory = new Table("Memory");
    this.figures = el("div", { class: "figures" }, this.predicted.node, this.prompt.node, this.running.node, this.waiting.node);
    root.append(el("div", { class: "server" }, this.problem, this.hint, this.figures, this.slots.node,
      el("div", { class: "tables" }, this.model.node, this.cache.node, this.totals.node, this.memory.node)));
    document.addEventListener("visibilitychange", () => this.#go());
  }

  setShown(shown) {
    this.#shown = shown;
    this.#go();
  }

  #go() {
    clearTimeout(this.#timer);
    this.#turn++;
    if (this.#shown && !document.hidden) this.#poll();
    else this.#last = null;
  }

  async #poll() {
    const turn = this.#turn;
    if (performance.now() - this.#propsTime > EVERY_PROPS) this.#props = null; // buffers grow
    const asked = [this.#ask(getText, "metrics"), this.#ask(getJson, "slots"), this.#props ?? getJson("props")];
    const [metrics, slots, props] = await Promise.allSettled(asked);
    if (turn !== this.#turn) return;
    if (slots.value) this.slots.show(slots.value);
    if (metrics.value !== undefined) this.#showMetrics(parseMetrics(metrics.value), slots.value ?? []);
    if (props.value && props.value !== this.#props) this.#showProps(props.value);
    const failed = [metrics, slots, props].find(({ reason }) => reason)?.reason;
    this.problem.hidden = !failed;
    if (failed) setText(this.problem, visible(failed.message));
    if (failed?.status === 401) askForKey(() => this.#go());
    else this.#timer = setTimeout(() => this.#poll(), EVERY);
  }

  // What a path answers, undefined where the server's options turned it off; then its figures stay away.
  async #ask(get, path) {
    if (this.#off.has(path)) return undefined;
    try {
      return await get(path);
    } catch (error) {
      if (error.status !== 501) throw error;
      this.#off.add(path);
      setText(this.hint, visible(error.message));
      this.hint.hidden = false;
      const parts = path === "metrics" ? [this.figures, this.cache.node, this.totals.node] : [this.slots.node];
      for (const part of parts) part.hidden = true;
      return undefined;
    }
  }

  #showMetrics(metrics, slots) {
    const value = (name) => metrics.get(`llamacpp:${name}`) ?? 0;
    const prompt = value("prompt_tokens_total"), predicted = value("tokens_predicted_total");
    this.#showSpeeds(prompt + sum(slots, read), predicted + sum(slots, written)); // metrics count only finished requests
    this.running.show(count.format(value("requests_processing")));
    this.waiting.show(count.format(value("requests_deferred")));
    this.totals.show([
      ["Tokens written", count.format(predicted)],
      ["Prompt tokens", count.format(prompt)],
      ["Writing speed", `${short(predicted / (value("tokens_predicted_seconds_total") || 1))} tokens/s`],
      ["Reading speed", `${short(prompt / (value("prompt_seconds_total") || 1))} tokens/s`],
    ]);
    this.cache.show(Object.entries(CACHE).filter(([name]) => metrics.has(`llamacpp:${name}`))
      .map(([name, label]) => [label, count.format(value(name))]));
  }

  #showSpeeds(prompt, predicted) {
    const last = this.#last;
    const now = { time: performance.now(), prompt, predicted };
    for (const name of ["prompt", "predicted"]) {
      if (last) now[name] = Math.max(now[name], last[name]); // a request may end between the two responses
      const speed = last && ((now[name] - last[name]) * 1000) / (now.time - last.time);
      this[name].show(last ? short(speed) : "–", speed);
    }
    this.#last = now;
  }

  #showProps(props) {
    this.#props = props;
    this.#propsTime = performance.now();
    this.#showModel(props);
    this.memory.show((props.buffers ?? []).map(memoryRow));
  }

  #showModel(props) {
    const path = String(props.model_path ?? "");
    const defaults = props.default_generation_settings ?? {};
    this.model.show([
      ["Name", props.model_alias || path.split(/[/\\]/).at(-1)],
      ["Context", defaults.n_ctx && `${count.format(defaults.n_ctx)} tokens`],
      ["Slots", props.total_slots],
      ["Version", props.build_info],
    ].filter(([, shown]) => shown));
  }
}

// What a buffer holds, and what of it is in memory: of several devices, each has its own.
function memoryRow({ buffer, device, layers, resident, bytes }) {
  const name = [buffer, device, layers && `layers ${layers}`].filter(Boolean).join(", ");
  const whole = bytes == null ? "" : inBytes(bytes), there = resident == null ? "unknown" : inBytes(resident);
  return [name, !whole || there === whole ? there : `${there} of ${whole}`];
}

function inBytes(n) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(1, n)) / 3));
  return `${(n / 1000 ** power).toFixed(power ? 1 : 0)} ${units[power]}`;
}

const sum = (slots, of) => slots.reduce((total, slot) => total + of(slot), 0);
