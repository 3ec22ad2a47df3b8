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

/** The fieldset. `onChange` is called after every change. */
export class BudgetControl {
  #stops = stopsTo(8192);
  #defaults = null;
  #denseBelow = null;
  #contextTokens = 0;
  #touched = false;

  constructor(form, onChange) {
    this.form = form;
    this.slider = form.querySelector("#budget-slider");
    this.number = form.querySelector("#budget-number");
    this.mode = form.querySelector("#mode");
    this.value = form.querySelector("#mode-value");
    this.hint = form.querySelector("#budget-hint");
    this.onChange = onChange;
    this.slider.addEventListener("input", () => this.#changed(() => this.#fromSlider()));
    this.number.addEventListener("input", () => this.#changed(() => this.#fromNumber()));
    this.mode.addEventListener("change", () => this.#changed());
    this.value.addEventListener("input", () => this.#changed());
    for (const choice of form.elements.budget) choice.addEventListener("change", () => this.#changed());
    this.#refresh();
  }

  /** Take what the engine says: its window, its plan's defaults, and below which context it runs dense. */
  configure({ context_window: contextWindow, defaults, dense_below: denseBelow }) {
    this.#stops = stopsTo(contextWindow);
    this.#defaults = defaults ?? null;
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
    if (this.mode.value !== "topk") {
      field.mode = this.mode.value;
      field.value = numberOrText(this.value);
    }
    return Object.keys(field).length ? field : null;
  }

  /** The same in a few words. */
  words() {
    const own = this.choice === "tokens" ? `${words.count(Number(this.number.value))} tokens` : this.choice;
    const bound = this.choice === "default" ? "the plan’s default" : own;
    return this.mode.value === "topk" ? bound : `${this.mode.value} ${this.value.value}, ${bound}`;
  }

  #changed(take = () => {}) {
    this.#touched = true;
    take();
    this.#refresh();
    this.onChange();
  }

  #fromSlider() {
    this.number.value = String(this.#stops[Number(this.slider.value)]);
    this.form.querySelector("input[name=budget][value=tokens]").checked = true;
  }

  #fromNumber() {
    const tokens = Number(this.number.value);
    if (tokens >= 1) this.slider.value = String(nearest(this.#stops, tokens));
  }

  #refresh() {
    const tokens = this.choice === "tokens";
    this.value.disabled = this.mode.value === "topk";
    this.form.querySelector("#budget").dataset.choice = this.choice;
    this.slider.setAttribute("aria-valuetext", `${words.count(this.#stops[Number(this.slider.value)])} tokens`);
    const plans = this.#defaults?.budget;
    const known = plans === undefined || plans === null ? "" : ` (${typeof plans === "number" ? words.count(plans) : plans})`;
    this.form.querySelector("#default-budget").textContent = known;
    this.hint.textContent = this.#hint(tokens ? Number(this.number.value) : null);
  }

  #hint(tokens) {
    const context = this.#contextTokens;
    if (context > 0 && this.#denseBelow !== null && context <= this.#denseBelow) {
      return `This document is short: contexts up to ${words.count(this.#denseBelow)} tokens run dense, whatever the budget.`;
    }
    if (tokens === null) {
      return this.choice === "auto" ? "A share of the prompt, as the head plan says." : "What a request without a budget gets.";
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
