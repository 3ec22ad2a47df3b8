// The budget's controls: three choices, a slider with round stops, a field for the exact number.

import * as words from "./words.js";

const SMALLEST = 64;

/** Round stops from 64 tokens to the context window: each half as much again as, or a third more than, the one before. */
export function stopsTo(contextWindow) {
  const stops = [];
  for (let power = SMALLEST; power < contextWindow; power *= 2) {
    stops.push(power);
    if (power * 1.5 < contextWindow) stops.push(power * 1.5);
  }
  return [...stops, contextWindow];
}

/** The stop next to a number of tokens, as an index. */
export function nearest(stops, tokens) {
  const distance = (stop) => Math.abs(Math.log(stop / tokens));
  return stops.reduce((best, stop, index) => (distance(stop) < distance(stops[best]) ? index : best), 0);
}

const HINTS = {
  auto: "A share of the prompt, as the policy or the head plan says.",
  default: "What a request without a budget gets.",
  recall: "The budget that this recall has needed so far, by the audits of earlier answers.",
};
const EXPLAIN_AFTER = 300; // milliseconds without a further change

/**
 * The fieldset. `explain(field, tokens)` resolves to what the gateway would do with a request's field `lychee` and a
 * prompt of so many tokens.
 */
export class BudgetControl {
  #stops = stopsTo(8192);
  #ready = false;
  #asking = null;
  #denseBelow = null;
  #contextTokens = 0;
  #touched = false;

  constructor(form, explain) {
    this.form = form;
    this.slider = form.querySelector("#budget-slider");
    this.number = form.querySelector("#budget-number");
    this.mode = form.querySelector("#mode");
    this.value = form.querySelector("#mode-value");
    this.hint = form.querySelector("#budget-hint");
    this.recall = form.querySelector("#min-recall");
    this.explain = explain;
    this.slider.addEventListener("input", () => this.#changed(() => this.#fromSlider()));
    this.number.addEventListener("input", () => {
      this.#choose("tokens");
      this.#changed(() => this.#fromNumber());
    });
    this.mode.addEventListener("change", () => this.#changed());
    this.value.addEventListener("input", () => this.#changed());
    this.recall.addEventListener("input", () => this.#changed(() => this.#choose("recall")));
    for (const choice of form.elements.budget) choice.addEventListener("change", () => this.#changed());
    this.#refresh();
  }

  /** Take what the engine says: its window, its plan's defaults, and below which context it runs dense. */
  configure({ context_window: contextWindow, defaults, dense_below: denseBelow }) {
    this.#stops = stopsTo(contextWindow);
    this.#ready = true;
    this.#denseBelow = denseBelow ?? null;
    this.slider.max = String(this.#stops.length - 1);
    this.number.max = String(contextWindow);
    if (!this.#touched && typeof defaults?.budget === "number") this.number.value = String(defaults.budget);
    this.#fromNumber();
    this.#refresh();
  }

  /** How long the document is, as far as is known. */
  contextIs(tokens) {
    this.#contextTokens = tokens;
    this.#refresh();
  }

  get choice() {
    return this.form.elements.budget.value;
  }

  /** The request's field `lychee`; null asks for nothing, which is the plan's default. */
  field() {
    const field = {};
    if (this.choice === "tokens") field.budget = numberOrText(this.number);
    if (this.choice === "auto") field.budget = "auto";
    if (this.choice === "recall") return { min_recall: numberOrText(this.recall) };
    if (this.mode.value !== "topk") {
      field.mode = this.mode.value;
      field.value = numberOrText(this.value);
    }
    return Object.keys(field).length ? field : null;
  }

  /** The same in a few words. */
  words() {
    if (this.choice === "recall") return `recall ≥ ${this.recall.value}`;
    const bound = this.choice === "tokens" ? `${words.count(Number(this.number.value))} tokens` : this.choice;
    return this.mode.value === "topk" ? bound : `${this.mode.value} ${this.value.value}, ${bound}`;
  }

  #changed(take = () => {}) {
    this.#touched = true;
    take();
    this.#refresh();
  }

  #fromSlider() {
    this.number.value = String(this.#stops[Number(this.slider.value)]);
    this.#choose("tokens");
  }

  #choose(choice) {
    this.form.querySelector(`input[name=budget][value=${choice}]`).checked = true;
  }

  #fromNumber() {
    const tokens = Number(this.number.value);
    if (tokens >= 1) this.slider.value = String(nearest(this.#stops, tokens));
  }

  #refresh() {
    const tokens = this.choice === "tokens";
    this.mode.disabled = this.choice === "recall"; // which comes alone
    this.value.disabled = this.mode.disabled || this.mode.value === "topk";
    this.form.querySelector("#budget").dataset.choice = this.choice;
    this.slider.setAttribute("aria-valuetext", `${words.count(this.#stops[Number(this.slider.value)])} tokens`);
    this.hint.textContent = this.#hint(tokens ? Number(this.number.value) : null);
    clearTimeout(this.#asking);
    if (!tokens && this.#ready) this.#asking = setTimeout(() => this.#forecast(), EXPLAIN_AFTER);
  }

  // What is not a number of tokens is the gateway's to decide: ask it.
  async #forecast() {
    const asked = this.#asking;
    try {
      const would = await this.explain(this.field(), this.#contextTokens);
      if (asked !== this.#asking || this.choice === "tokens") return;
      this.hint.textContent = `Such a request would get ${words.budget(would.budget, would.mode)} now (${words.reason(would)}).`;
    } catch {
      // no answer, or a refusal that the request itself will meet: the hint stays as it is
    }
  }

  #hint(tokens) {
    const context = this.#contextTokens;
    if (context > 0 && this.#denseBelow !== null && context <= this.#denseBelow) {
      return `This document is short: contexts up to ${words.count(this.#denseBelow)} tokens run dense, whatever the budget.`;
    }
    if (tokens === null) {
      return HINTS[this.choice];
    }
    const base = "Tokens that each sparse head may read at every step";
    if (!(context > 0)) return `${base}.`;
    if (tokens >= context) return `${base}: it covers this document, so the answer runs dense.`;
    return `${base}: ${words.percent(tokens / context)} of this document.`;
  }
}

// A wrong number goes to the gateway as it was typed: its answer says what is allowed.
function numberOrText(input) {
  const text = input.value.trim();
  return text !== "" && Number.isFinite(Number(text)) ? Number(text) : text;
}
