// What the gateway says of its engine: ready or not and why, its model, window and defaults.

import { getJson } from "./api.js";
import * as words from "./words.js";

const PERIOD = 3;

/** Watches /readyz while the page is visible. `model` is the last one known; `onReady` gets the engine's facts whenever it becomes ready. */
export class Engine {
  model = null;
  #stale = true;
  #timer = null;

  constructor(node, text, onReady) {
    this.node = node;
    this.text = text;
    this.onReady = onReady;
    document.addEventListener("visibilitychange", () => this.#schedule(0));
    this.#schedule(0);
  }

  /** Look at once, at the model too: the key has changed, say. */
  look() {
    this.#stale = true;
    return this.#look();
  }

  #schedule(seconds) {
    clearTimeout(this.#timer);
    if (!document.hidden) this.#timer = setTimeout(() => this.#look(), 1000 * seconds);
  }

  async #look() {
    clearTimeout(this.#timer);
    try {
      const facts = await getJson("readyz");
      if (this.#stale) {
        this.model = (await getJson("v1/models")).data[0].id;
        this.#stale = false;
        this.onReady(facts);
      }
      this.#say("ready", this.#ready(facts));
    } catch (error) {
      this.#stale = true; // another engine may come back
      this.#say(error.status === 401 ? "locked" : "away", error.message);
    }
    this.#schedule(PERIOD);
  }

  #ready({ context_window: contextWindow, plan }) {
    const parts = [this.model, `window ${words.count(contextWindow)} tokens`];
    if (!plan) parts.push("without the plug-in: all answers are dense");
    else if (plan.heuristic) parts.push("heuristic head plan, not calibrated");
    else if (plan.name !== this.model) parts.push(`head plan ${plan.name}`);
    return `Ready: ${parts.join(", ")}`;
  }

  #say(state, text) {
    this.node.dataset.state = state;
    if (this.text.textContent !== text) this.text.textContent = text;
  }
}
