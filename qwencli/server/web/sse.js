// Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html), as chat completions use them.

export class EventParser {
  #rest = "";
  #data = [];
  #afterCr = false; // the last piece ended with CR, so a newline would belong to that

  // Takes a piece of the stream, cut anywhere. Returns the data of the events that it completes.
  add(piece) {
    const lines = (this.#rest + (this.#afterCr ? piece.replace(/^\n/, "") : piece)).split(/\r\n?|\n/);
    if (piece) this.#afterCr = piece.endsWith("\r");
    this.#rest = lines.pop();
    const events = [];
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length) events.push(this.#data.join("\n"));
        this.#data = [];
      } else if (/^(data|error):/.test(line)) { // llama.cpp sends errors in a field named "error"
        const value = line.slice(line.indexOf(":") + 1);
        this.#data.push(value.startsWith(" ") ? value.slice(1) : value);
      }
    }
    return events;
  }
}

// Yields the data of each event in a response's body.
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  const parser = new EventParser();
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      yield* parser.add(value);
    }
  } finally {
    reader.cancel().catch(() => {}); // when nobody listens any more, this also stops the server
  }
}
