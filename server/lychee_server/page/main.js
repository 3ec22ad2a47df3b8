// Puts the page together: what the form asks, what the panes show, what is said of the two answers.

import { announcer } from "./announce.js";
import { compareTexts } from "./answer.js";
import { key, postJson } from "./api.js";
import { BudgetControl } from "./budget.js";
import { Comparison } from "./compare.js";
import { Engine } from "./engine.js";
import { Live } from "./live.js";
import { Pane, drawGapsTogether } from "./pane.js";
import { addRun } from "./runs.js";
import { Source } from "./source.js";
import * as words from "./words.js";

const at = (id) => document.getElementById(id);
const form = at("ask");
const say = announcer(at("announcer"));
// Fields of a request, and the inputs that hold them.
const FIELDS = {
  "lychee.budget": "budget-number",
  "lychee.mode": "mode",
  "lychee.value": "mode-value",
  "lychee.min_recall": "min-recall",
  max_tokens: "max-tokens",
};

class Page {
  #comparison = null;
  #results = {};
  #prompt = "";
  #read = null;
  #unseen = {};
  #frame = null;

  constructor() {
    this.budget = new BudgetControl(form, (...asked) => this.#explain(...asked));
    this.source = new Source(form, (tokens) => this.budget.contextIs(tokens));
    this.panes = {
      dense: new Pane(at("panes"), "dense", "every head reads everything"),
      sparse: new Pane(at("panes"), "sparse", "sparse heads read a budget"),
    };
    this.engine = new Engine(at("engine"), at("engine-words"), (facts) => {
      this.budget.configure(facts);
      this.source.windowIs(facts.context_window);
    });
    this.live = new Live(at("charts"), at("pause"), at("live-hint"));
    this.#listen();
  }

  #listen() {
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask(["dense", "sparse"]);
    });
    at("sparse-only").addEventListener("click", () => this.ask(["sparse"]));
    at("try").addEventListener("click", () => this.#try());
    at("stop").addEventListener("click", () => this.#comparison?.stop());
    for (const [name, pane] of Object.entries(this.panes)) {
      pane.stopButton.addEventListener("click", () => this.#comparison?.stopOne(name));
    }
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.#comparison?.stop();
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
    at("key").value = key.get();
    at("key").addEventListener("change", (event) => {
      key.set(event.target.value.trim());
      this.engine.look();
    });
  }

  #explain(lychee, tokens) {
    const request = { model: this.engine.model, messages: [], ...(lychee && { lychee }) };
    return postJson("v1/sparsity/explain", { request, ...(tokens > 0 && { prompt_tokens: tokens }) });
  }

  #try() {
    if (this.#comparison) return;
    this.source.fillExample();
    this.ask(["dense", "sparse"]);
  }

  /** Ask; `names` are the answers wanted. */
  async ask(names) {
    if (this.#comparison) return;
    this.#clear(names);
    const prompt = this.source.prompt;
    if (!this.source.question.value.trim()) {
      this.#refuse("Write a question first, or try the example.", this.source.question);
      return;
    }
    if (this.engine.model === null) await this.engine.look();
    if (this.engine.model === null) {
      this.#refuse(at("engine-words").textContent, at("engine").dataset.state === "locked" ? at("key") : null);
      return;
    }
    if (prompt !== this.#prompt) this.#forget(names);
    this.#prompt = prompt;
    this.#comparison = new Comparison((event, ...details) => this[`on_${event}`](...details));
    this.#busy(true);
    if (at("answers").getBoundingClientRect().top > window.innerHeight) at("answers").scrollIntoView();
    if (names.includes("sparse")) this.panes.sparse.what(`budget: ${this.budget.words()}`);
    const asked = { budget: this.budget.words(), expected: this.source.expected, time: new Date() };
    const bodies = Object.fromEntries(names.map((name) => [name, this.#body(prompt, name)]));
    try {
      const answers = await this.#comparison.run(bodies, at("order").value === "together");
      Object.assign(this.#results, answers);
      this.#conclude(asked, answers.sparse);
    } finally {
      this.#comparison = null;
      this.#busy(false);
    }
  }

  #body(prompt, name) {
    const lychee = name === "dense" ? { budget: "dense" } : this.budget.field();
    return {
      model: this.engine.model,
      messages: [{ role: "user", content: prompt }],
      temperature: 0,
      max_tokens: at("max-tokens").value.trim() === "" ? null : Number(at("max-tokens").value),
      ...(lychee && { lychee }),
    };
  }

  on_reading() {
    for (const pane of this.#asked) pane.phase("waiting: the document is being read", { busy: true });
    if (this.#read !== this.#prompt) at("read-time").textContent = "reading";
    say("Reading the document");
  }

  on_read(seconds, usage) {
    // Read again it is found in the cache: the time that counts is the first one.
    if (this.#read !== this.#prompt) at("read-time").textContent = words.duration(seconds);
    this.#read = this.#prompt;
    if (usage) this.source.measured(this.#prompt, usage.prompt_tokens);
    for (const pane of this.#asked) pane.phase("waiting for its turn", { busy: true });
  }

  on_started(name) {
    this.panes[name].phase("waiting for the first token", { busy: true });
    say(`${this.panes[name].title} answer started`);
  }

  on_changed(name, answer) {
    this.panes[name].phase("answering", { busy: true });
    // Tokens can come faster than a screen shows them.
    this.#unseen[name] = answer;
    this.#frame ??= requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    cancelAnimationFrame(this.#frame); // a tab in the background gets none
    this.#frame = null;
    for (const [name, answer] of Object.entries(this.#unseen)) this.panes[name].show(answer);
    this.#unseen = {};
    drawGapsTogether(Object.values(this.panes));
  }

  on_finished(name, answer) {
    this.#draw();
    this.panes[name].phase(answer.finish === "length" ? "done: longest answer reached" : "done");
    say(`${this.panes[name].title} answer: ${answer.text}. ${words.duration(answer.tokenSeconds)} per token.`);
  }

  on_stopped(name) {
    this.#draw();
    this.panes[name].phase("stopped");
    say(`${this.panes[name].title} answer stopped`);
  }

  /** An error of one answer, or of the reading before them; null: the reading was stopped. */
  on_failed(error, name = null) {
    this.#draw();
    const panes = name ? [this.panes[name]] : this.#asked;
    for (const pane of panes) pane.phase(error ? "failed" : "stopped");
    if (name === null) this.#read = null;
    if (error === null) {
      at("read-time").textContent = "stopped";
      say("Stopped");
      return;
    }
    if (!(error.status >= 0)) throw error; // a mistake of this page: the console has to show it
    if (name) this.panes[name].problem(error.message);
    else at("read-time").textContent = words.NOTHING;
    const input = at(FIELDS[error.param] ?? (error.status === 401 ? "key" : ""));
    this.#refuse(name ? `${this.panes[name].title}: ${error.message}` : error.message, input);
  }

  get #asked() {
    return Object.values(this.panes).filter((pane) => pane.asked);
  }

  #clear(names) {
    at("notice").hidden = true;
    for (const input of form.querySelectorAll("[aria-invalid]")) input.removeAttribute("aria-invalid");
    for (const [name, pane] of Object.entries(this.panes)) {
      pane.asked = names.includes(name);
      if (pane.asked) pane.clear();
    }
    for (const name of names) delete this.#results[name];
    for (const id of ["ratio", "verdict"]) at(id).textContent = words.NOTHING;
  }

  // Answers to another prompt are not to be compared with.
  #forget(names) {
    this.#results = {};
    for (const [name, pane] of Object.entries(this.panes)) {
      if (names.includes(name)) continue;
      pane.clear();
      pane.phase("not asked yet");
    }
  }

  #busy(busy) {
    const focused = document.activeElement;
    for (const id of ["both", "sparse-only", "try"]) at(id).disabled = busy;
    at("stop").disabled = !busy;
    // A button that is switched off loses the keyboard's focus: hand it on.
    if (busy && focused?.disabled) at("stop").focus({ preventScroll: true });
    if (!busy && focused === at("stop")) at("both").focus({ preventScroll: true });
  }

  #refuse(text, input) {
    at("notice").textContent = text;
    at("notice").hidden = false;
    at("notice").scrollIntoView({ block: "nearest" }); // on a phone it is below the form
    if (!input) return;
    input.setAttribute("aria-invalid", "true");
    const details = input.closest("details");
    if (details) details.open = true;
  }

  #conclude(asked, sparse) {
    const { dense } = this.#results;
    const verdict = this.#verdict(dense, this.#results.sparse, asked.expected);
    if (dense?.tokenSeconds && this.#results.sparse?.tokenSeconds) {
      at("ratio").textContent = `${(dense.tokenSeconds / this.#results.sparse.tokenSeconds).toFixed(2)} : 1`;
    }
    if (verdict) at("verdict").textContent = verdict.long;
    if (sparse) {
      const time = asked.time.toLocaleTimeString("en-GB");
      const { budget } = asked;
      addRun(at("runs"), { asked: time, budget, summary: sparse.lychee, answer: sparse, dense, verdict: verdict?.short ?? "–" });
    }
  }

  #verdict(dense, sparse, expected) {
    if (!dense || !sparse) return null;
    const { same, word } = compareTexts(dense.text, sparse.text);
    const short = same ? "word for word" : `until word ${word}`;
    const long = same ? "Yes, word for word." : `They part at word ${word}.`;
    if (expected === null) return { short, long };
    const found = ({ text }) => text.replaceAll(/[\s,]/g, "").includes(expected);
    const finders = Object.entries({ dense, sparse }).filter(([, answer]) => found(answer)).map(([name]) => name);
    const who = { 0: "Neither gives it", 1: `Only ${finders[0]} gives it`, 2: "Both give it" }[finders.length];
    return { short, long: `${long} The log says ${expected}. ${who}.` };
  }
}

new Page();
