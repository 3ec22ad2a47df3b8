// One question, asked dense and sparse: reads the document once, then lets both answer, in turn or at once.

import { ask } from "./answer.js";

// Not one: a sparse request that ends with its first token can leave without having put its prompt into the cache.
const READING_TOKENS = 2;

/**
 * A comparison under way. Events, by name, to `on`: `reading`, `read(seconds)`, `failed(error)`, and of an answer
 * `started(name)`, `changed(name, answer)`, `finished(name, answer)`, `stopped(name)`, `failed(error, name)`.
 */
export class Comparison {
  #all = new AbortController();
  #single = {};

  constructor(on) {
    this.on = on;
  }

  /** Stop everything. */
  stop() {
    this.#all.abort();
  }

  /** Stop one answer; without any left, the reading too. */
  stopOne(name) {
    this.#single[name]?.abort();
    if (Object.values(this.#single).every(({ signal }) => signal.aborted)) this.stop();
  }

  /**
   * @param bodies the request of each answer by its name, in the order in which they are asked.
   * @param together ask at the same time.
   * @returns the finished answers by name.
   */
  async run(bodies, together) {
    const answers = {};
    for (const name of Object.keys(bodies)) this.#single[name] = new AbortController();
    if (!(await this.#read(Object.values(bodies).at(-1)))) return answers;
    const one = async ([name, body]) => {
      const answer = await this.#answer(name, body);
      if (answer) answers[name] = answer;
    };
    if (together) await Promise.all(Object.entries(bodies).map(one));
    else for (const entry of Object.entries(bodies)) await one(entry);
    return answers;
  }

  /** Put the prompt into the cache; the sparse request's own settings show at once whether they are acceptable. */
  async #read(body) {
    this.on("reading");
    try {
      const { firstSeconds, seconds, usage } = await ask({ ...body, max_tokens: READING_TOKENS }, this.#all.signal);
      this.on("read", firstSeconds ?? seconds, usage);
      return true;
    } catch (error) {
      this.on("failed", isAbort(error) ? null : error);
      return false;
    }
  }

  async #answer(name, body) {
    const signal = AbortSignal.any([this.#all.signal, this.#single[name].signal]);
    if (signal.aborted) {
      this.on("stopped", name);
      return null;
    }
    this.on("started", name);
    try {
      const answer = await ask(body, signal, (partial) => this.on("changed", name, partial));
      this.on("finished", name, answer);
      return answer;
    } catch (error) {
      if (isAbort(error)) this.on("stopped", name);
      else this.on("failed", error, name);
      return null;
    }
  }
}

function isAbort(error) {
  return error.name === "AbortError";
}
