// The server's API: sends requests with the key, and turns errors into one sentence.
import { events } from "./sse.js";

const KEY = "qwencli/key"; // kept until this tab is closed

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
};

export class ApiError extends Error {
  // status: the HTTP status, 0 if there was no response. retryAfter: seconds, or 0.
  constructor(message, status = 0, retryAfter = 0) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

export const wasStopped = (error) => error.name === "AbortError";

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" }); // a relative path works behind a proxy that adds a prefix
  } catch (error) {
    if (wasStopped(error)) throw error;
    throw new ApiError("The server does not answer. Is it still running?");
  }
  if (!response.ok) throw await asError(response);
  return response;
}

async function asError(response) {
  const text = await response.text().catch(() => "");
  let message = "";
  try {
    message = messageOf(JSON.parse(text));
  } catch {
    // not JSON: the page of a proxy, which would not help
  }
  const retryAfter = Number(response.headers.get("Retry-After")) || 0;
  return new ApiError(message || `The server answered ${response.status} ${response.statusText}`.trim(), response.status, retryAfter);
}

const messageOf = (answer) => String(answer?.error?.message ?? answer?.error ?? answer?.message ?? "");

export const getJson = async (path, signal) => (await request(path, { signal })).json();
export const getText = async (path, signal) => (await request(path, { signal })).text();

// Yields the chunks of a chat completion as the server streams them.
export async function* chat(body, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error || (chunk.message && !chunk.choices)) throw new ApiError(messageOf(chunk) || "The server failed.");
      yield chunk;
    }
  } catch (error) {
    if (wasStopped(error) || error instanceof ApiError) throw error;
    if (error instanceof SyntaxError) throw new ApiError("The server sent something that is not JSON.");
  }
  throw new ApiError("The connection ended before the answer did.");
}
