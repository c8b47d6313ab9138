// Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html), as chat completions use them.

export class EventParser {
  #rest = "";
  #data = [];
  #afterCr = false; // then a newline belongs to what ended there

  // A piece of the stream, cut anywhere -> the data of the events that it completes.
  add(piece) {
    const lines = (this.#rest + (this.#afterCr ? piece.replace(/^\n/, "") : piece)).split(/\r\n?|\n/);
    if (piece) this.#afterCr = piece.endsWith("\r");
    this.#rest = lines.pop();
    const events = [];
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length) events.push(this.#data.join("\n"));
        this.#data = [];
      } else if (/^(data|error):/.test(line)) { // llama.cpp writes errors into a field of their own
        const value = line.slice(line.indexOf(":") + 1);
        this.#data.push(value.startsWith(" ") ? value.slice(1) : value);
      }
    }
    return events;
  }
}

// The data of each event of a response's body, which ends with the stream.
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
    reader.cancel().catch(() => {}); // who stops listening also stops the server
  }
}
