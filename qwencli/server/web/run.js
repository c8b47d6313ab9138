// An answer while the server is generating it.
import { chat, wasStopped } from "./api.js";

export class Run {
  #controller = new AbortController();
  #began = performance.now();
  #firstToken = 0; // when it arrived
  #thinkingSince = 0;
  #pieces = 0; // about the number of tokens

  // changed(): called whenever the message has grown, up to once per token.
  constructor(message, request, changed) {
    this.message = message;
    this.request = request;
    this.changed = changed;
  }

  stop() {
    this.#controller.abort();
  }

  get waiting() {
    return !this.#firstToken;
  }

  get thinking() {
    return this.#thinkingSince > 0;
  }

  // Tokens per second so far.
  get speed() {
    const seconds = (performance.now() - this.#firstToken) / 1000;
    return this.#pieces > 1 && seconds > 0.2 ? (this.#pieces - 1) / seconds : 0;
  }

  thinkingMs() {
    return this.#thinkingSince ? performance.now() - this.#thinkingSince : this.message.thinkingMs;
  }

  // Resolves when the answer ends. An error is in message.error: {text, status, retryAfter}.
  async start() {
    this.message.stats = {};
    try {
      for await (const chunk of chat(this.request, this.#controller.signal)) {
        this.#read(chunk);
        this.changed();
      }
    } catch (error) {
      if (wasStopped(error)) this.message.stats.reason = "stopped";
      else this.message.error = { text: error.message, status: error.status ?? 0, retryAfter: error.retryAfter ?? 0 };
    }
    this.#thought();
    const { stats } = this.message;
    stats.tokens ??= this.#pieces;
    stats.speed ??= this.speed;
    if (this.#firstToken) stats.first = (this.#firstToken - this.#began) / 1000;
  }

  #read(chunk) {
    const choice = chunk.choices?.[0];
    const { message } = this;
    const { reasoning_content: reasoning, content, tool_calls: calls } = choice?.delta ?? {};
    if (reasoning || content || calls) {
      this.#firstToken ||= performance.now();
      this.#pieces++;
    }
    if (reasoning) {
      this.#thinkingSince ||= performance.now();
      message.reasoning = (message.reasoning ?? "") + reasoning;
    }
    if (content) {
      this.#thought();
      message.content += content;
    }
    if (choice?.finish_reason) message.stats.reason = choice.finish_reason;
    if (chunk.usage) this.#usage(chunk.usage);
    if (chunk.timings?.predicted_per_second) message.stats.speed = chunk.timings.predicted_per_second; // measured by the server
  }

  #thought() {
    if (!this.#thinkingSince) return;
    this.message.thinkingMs = this.thinkingMs();
    this.#thinkingSince = 0;
  }

  #usage(usage) {
    const { stats } = this.message;
    stats.tokens = usage.completion_tokens;
    stats.prompt = usage.prompt_tokens;
    stats.cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    const seconds = (performance.now() - this.#firstToken) / 1000;
    if (stats.tokens > 1 && seconds > 0) stats.speed ??= (stats.tokens - 1) / seconds;
  }
}
