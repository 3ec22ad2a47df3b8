// The gateway's HTTP: requests with the key, errors as one class, event streams as objects. Paths are relative, so
// that the page also works below a prefix of a reverse proxy.

import { failure } from "./words.js";

const KEY = "lychee-api-key";

/** The key that requests carry: kept by the tab, forgotten with it. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set(value) {
    if (value) sessionStorage.setItem(KEY, value);
    else sessionStorage.removeItem(KEY);
  },
};

/** An answer that is an error. `message` is meant for people. */
export class GatewayError extends Error {
  constructor({ status = 0, param = null, code = null, words }) {
    super(words);
    Object.assign(this, { status, param, code });
  }
}

/** Fetch; resolves to a response whose status is good, else throws a GatewayError. */
export async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    throw error.name === "AbortError" ? error : unreachable();
  }
  if (!response.ok) throw await errorOf(response);
  return response;
}

/** A JSON document. */
export async function getJson(path, options) {
  return (await request(path, options)).json();
}

/** Post JSON, and read the answer's. */
export async function postJson(path, body) {
  const headers = { "content-type": "application/json" };
  return (await request(path, { method: "POST", headers, body: JSON.stringify(body) })).json();
}

/** Post a streamed chat; yields each chunk as `{chunk, at}`, `at` its arrival by performance.now(). */
export async function* chat(body, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  const events = new EventReader();
  let finished = false;
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const at = performance.now();
      for (const data of events.feed(value)) {
        if (data === "[DONE]") {
          finished = true;
          continue;
        }
        const chunk = JSON.parse(data);
        if (chunk.error) throw streamError(chunk.error);
        yield { chunk, at };
      }
    }
  } catch (error) {
    throw error instanceof TypeError ? unreachable("The connection to the gateway broke before the end.") : error;
  }
  if (!finished) throw unreachable("The connection to the gateway broke before the end.");
}

/** Cuts a text stream into the data of its server-sent events. */
export class EventReader {
  #rest = "";

  feed(text) {
    const parts = (this.#rest + text).split(/\r?\n\r?\n/);
    this.#rest = parts.pop();
    return parts.map(dataOf).filter((data) => data !== "");
  }
}

function dataOf(event) {
  const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
}

async function errorOf(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // not ours, a proxy's page say: the status has to do
  }
  const { message, param, code } = error;
  const { status, headers } = response;
  const words = failure({
    status, message, param, retryAfter: headers.get("retry-after"), requestId: headers.get("x-request-id"),
  });
  return new GatewayError({ status, param, code, words });
}

function streamError({ message, param, code }) {
  const words = `The answer broke off: ${message ?? "the engine failed"}.`;
  return new GatewayError({ param, code, words });
}

function unreachable(words = "The gateway cannot be reached. Is it still running?") {
  return new GatewayError({ words });
}
