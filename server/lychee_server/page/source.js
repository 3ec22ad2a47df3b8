// The document and the question: pasted, opened, or made as an example; and how long they are.

import { freshSeed, writeExample } from "./example.js";
import * as words from "./words.js";

// What English prose comes to in the vocabularies of small models, until a run has told the real figure.
const CHARACTERS_PER_TOKEN = 4.4;
const TEMPLATE_TOKENS = 40;

/** The fields of the form that say what is asked about. */
export class Source {
  #charactersPerToken = CHARACTERS_PER_TOKEN;
  #measured = { text: null, tokens: 0 };
  #example = null;
  #kept = null;
  #window = null;

  constructor(form, onChange) {
    this.document = form.querySelector("#document");
    this.question = form.querySelector("#question");
    this.size = form.querySelector("#size");
    this.length = form.querySelector("#example-length");
    this.restoreButton = form.querySelector("#restore");
    this.onChange = onChange;
    for (const field of [this.document, this.question]) field.addEventListener("input", () => this.#changed());
    form.querySelector("#file").addEventListener("change", (event) => this.#open(event.target));
    this.restoreButton.addEventListener("click", () => this.#restore());
  }

  windowIs(tokens) {
    this.#window = tokens;
    this.#changed();
  }

  /** The user message; the question stands behind the text, as in a chat about an attachment. */
  get prompt() {
    return [this.document.value.trim(), this.question.value.trim()].filter(Boolean).join("\n\n");
  }

  /** The number that the example hides, as long as its text and question are unchanged; else null. */
  get expected() {
    const { text, question, expected } = this.#example ?? {};
    return this.document.value === text && this.question.value === question ? expected : null;
  }

  get tokens() {
    if (this.prompt === this.#measured.text) return this.#measured.tokens;
    return this.prompt ? Math.round(this.prompt.length / this.#charactersPerToken) + TEMPLATE_TOKENS : 0;
  }

  /** Take what the engine counted for a prompt. */
  measured(prompt, tokens) {
    this.#measured = { text: prompt, tokens };
    if (tokens > 2 * TEMPLATE_TOKENS) this.#charactersPerToken = prompt.length / (tokens - TEMPLATE_TOKENS);
    this.#changed();
  }

  /** Replace the text by a new example; what the user had is kept for a way back. */
  fillExample() {
    const own = this.#example?.text !== this.document.value && this.document.value !== "";
    if (own) this.#kept = { text: this.document.value, question: this.question.value };
    const tokens = Math.min(Number(this.length.value), (this.#window ?? Infinity) - 300);
    this.#example = writeExample(Math.max(tokens, 100) * this.#charactersPerToken, freshSeed());
    this.#fill(this.#example);
  }

  async #open(input) {
    const [file] = input.files;
    if (!file) return;
    if (this.document.value) this.#kept = { text: this.document.value, question: this.question.value };
    this.#fill({ text: await file.text(), question: this.question.value });
    input.value = "";
  }

  #restore() {
    const kept = this.#kept;
    this.#kept = null;
    this.#fill(kept);
    this.document.focus();
  }

  #fill({ text, question }) {
    this.document.value = text;
    this.question.value = question;
    this.restoreButton.hidden = this.#kept === null;
    this.#changed();
  }

  #changed() {
    const known = this.prompt === this.#measured.text;
    const number = words.count(this.tokens);
    let text = this.tokens === 0 ? "empty" : known ? `${number} tokens` : `about ${number} tokens`;
    if (this.#window && this.tokens > this.#window) text += `: more than the window of ${words.count(this.#window)}`;
    this.size.textContent = text;
    this.onChange(this.tokens);
  }
}
