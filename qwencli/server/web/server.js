// The second view: what the server does right now. It asks only while it is looked at.
import { getJson, getText } from "./api.js";
import { askForKey } from "./auth.js";
import { el, visible } from "./dom.js";
import { Figure, setText, Slots, Table } from "./figures.js";
import { parseMetrics } from "./prometheus.js";

const EVERY = 1000; // milliseconds

const count = new Intl.NumberFormat("en");
const short = (value) => (value < 99.5 ? value.toFixed(value && value < 9.95 ? 1 : 0) : count.format(Math.round(value)));

// Metrics that the view shows elsewhere, or not at all.
const isCache = (name) => /cache/.test(name) && !/_(bucket|created)$/.test(name);

export class ServerView {
  #shown = false;
  #timer = 0;
  #last = null; // {time, prompt, predicted}: the counters before
  #props = null;

  constructor(root) {
    this.problem = el("p", { class: "error", role: "alert", hidden: true });
    this.predicted = new Figure("Writing", "tokens/s", true);
    this.prompt = new Figure("Reading prompts", "tokens/s", true);
    this.running = new Figure("Running", "requests");
    this.waiting = new Figure("Waiting", "in the queue");
    this.slots = new Slots();
    this.cache = new Table("Cache");
    this.totals = new Table("Since the start");
    this.model = new Table("Model");
    const figures = el("div", { class: "figures" }, this.predicted.node, this.prompt.node, this.running.node, this.waiting.node);
    root.append(el("div", { class: "server" }, this.problem, figures, this.slots.node,
      el("div", { class: "tables" }, this.model.node, this.cache.node, this.totals.node)));
    document.addEventListener("visibilitychange", () => this.#go());
  }

  setShown(shown) {
    this.#shown = shown;
    this.#go();
  }

  #go() {
    clearTimeout(this.#timer);
    if (this.#shown && !document.hidden) this.#poll();
    else this.#last = null;
  }

  async #poll() {
    clearTimeout(this.#timer);
    const asked = [getText("metrics"), getJson("slots"), this.#props ?? getJson("props")];
    const [metrics, slots, props] = await Promise.allSettled(asked);
    if (metrics.value !== undefined) this.#showMetrics(parseMetrics(metrics.value));
    if (slots.value) this.slots.show(slots.value);
    if (props.value) this.#showModel((this.#props = props.value));
    const failed = [metrics, slots, props].find(({ reason }) => reason)?.reason;
    this.problem.hidden = !failed;
    if (failed) setText(this.problem, visible(failed.message));
    if (failed?.status === 401) askForKey(() => this.#go());
    else if (this.#shown && !document.hidden) this.#timer = setTimeout(() => this.#poll(), EVERY);
  }

  #showMetrics(metrics) {
    const value = (name) => metrics.get(`llamacpp:${name}`)?.value ?? 0;
    const now = { time: performance.now(), prompt: value("prompt_tokens_total"), predicted: value("tokens_predicted_total") };
    const seconds = this.#last && (now.time - this.#last.time) / 1000;
    for (const name of ["prompt", "predicted"]) {
      const speed = seconds ? Math.max(0, now[name] - this.#last[name]) / seconds : null;
      this[name].show(speed === null ? "–" : short(speed), speed);
    }
    this.#last = now;
    this.running.show(short(value("requests_processing")));
    this.waiting.show(short(value("requests_deferred")));
    this.totals.show([
      ["Tokens written", count.format(now.predicted)],
      ["Tokens of prompts", count.format(now.prompt)],
      ["Writing, on average", `${short(value("predicted_tokens_seconds"))} tokens/s`],
      ["Reading, on average", `${short(value("prompt_tokens_seconds"))} tokens/s`],
    ]);
    this.cache.show([...metrics].filter(([name]) => isCache(name)).map(([name, { value: amount, help }]) => [help || name, withUnit(name, amount)]));
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

function withUnit(name, amount) {
  if (/_ratio$/.test(name)) return `${short(100 * amount)} %`;
  if (/_bytes(_total)?$/.test(name)) return `${short(amount / 2 ** 20)} MiB`;
  return count.format(amount);
}
