// The view of one answer: text, figures, the strip of token times, a button that stops it.

import { gapsOf, tokensOf } from "./answer.js";
import * as words from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const STRIP = { width: 320, height: 44 };
const FEWEST_BARS = 24;
const MOST_BARS = 160;

/** One of the two panes. */
export class Pane {
  /** The gaps between tokens in seconds; both panes draw them on the same scale. */
  gaps = [];

  /**
   * @param parent where it goes.
   * @param name "dense" or "sparse": colour and anchors.
   * @param what one line on what this pane shows.
   */
  constructor(parent, name, what) {
    this.name = name;
    const node = document.getElementById("pane").content.firstElementChild.cloneNode(true);
    this.title = name[0].toUpperCase() + name.slice(1);
    node.id = name;
    node.dataset.kind = name;
    this.node = node;
    this.part = (selector) => node.querySelector(selector);
    const heading = this.part("h3");
    heading.textContent = this.title;
    heading.id = `${name}-title`;
    node.setAttribute("aria-labelledby", heading.id);
    this.part(".answer").setAttribute("aria-label", `Text of the ${name} answer`);
    this.stopButton = this.part(".stop");
    this.stopButton.setAttribute("aria-label", `Stop the ${name} answer`);
    this.what(what);
    parent.append(node);
  }

  what(text) {
    this.part(".what").textContent = text;
  }

  phase(text, { busy = false } = {}) {
    this.part(".phase").textContent = text;
    this.node.classList.toggle("busy", busy);
    this.part(".answer").setAttribute("aria-busy", String(busy));
    if (!busy && document.activeElement === this.stopButton) this.part(".answer").focus({ preventScroll: true });
    this.stopButton.disabled = !busy;
  }

  clear() {
    this.gaps = [];
    this.part(".answer").textContent = "";
    this.part(".reasoning").hidden = true;
    this.part(".problem").hidden = true;
    for (const cell of this.node.querySelectorAll("[data-figure]")) cell.textContent = words.NOTHING;
    for (const bar of this.node.querySelectorAll("[data-bar]")) bar.setAttribute("width", "0");
    this.drawGaps(1);
  }

  show(answer) {
    this.part(".answer").textContent = answer.text;
    this.part(".reasoning").textContent = answer.reasoning;
    this.part(".reasoning").hidden = answer.reasoning === "";
    this.gaps = gapsOf(answer);
    this.#figure("first", words.duration(answer.firstSeconds));
    this.#figure("token", words.duration(answer.tokenSeconds));
    this.#figure("tokens", words.count(tokensOf(answer)));
    if (answer.lychee) this.#account(answer.lychee);
  }

  #account(summary) {
    this.#figure("context", words.count(summary.context_tokens));
    const why = summary.budget === "dense" ? "" : ` (${words.reason(summary)})`;
    this.#figure("budget", words.budget(summary.budget, summary.mode) + why);
    for (const [name, share] of [["attended", summary.attended_fraction], ["recall", summary.recall]]) {
      this.#figure(name, words.percent(share));
      this.part(`[data-bar=${name}]`).setAttribute("width", String(100 * Math.min(1, share ?? 0)));
    }
    if (summary.recall === null) {
      const dense = summary.attended_fraction === 1;
      this.#figure("recall", dense ? "all of it" : "not audited: too few steps");
      if (dense) this.part("[data-bar=recall]").setAttribute("width", "100");
    }
  }

  #figure(name, text) {
    this.part(`[data-figure=${name}]`).textContent = text;
  }

  problem(text) {
    const place = this.part(".problem");
    place.textContent = text;
    place.hidden = false;
  }

  /** Draw the strip; `top` is the gap, in seconds, that reaches its upper edge. */
  drawGaps(top) {
    const strip = this.part(".gaps svg");
    strip.replaceChildren();
    const size = Math.ceil(this.gaps.length / MOST_BARS) || 1;
    const bars = meansOf(this.gaps, size);
    const step = STRIP.width / Math.max(bars.length, FEWEST_BARS);
    bars.forEach((gap, index) => {
      const bar = document.createElementNS(SVG, "rect");
      const height = Math.max(1, Math.min(1, gap / top) * STRIP.height);
      const box = { x: index * step, y: STRIP.height - height, width: Math.max(step - 1, 0.5), height };
      for (const [attribute, value] of Object.entries(box)) bar.setAttribute(attribute, value.toFixed(2));
      strip.append(bar);
    });
    const cut = bars.some((gap) => gap > top) ? ", higher ones are cut" : "";
    const grouped = size > 1 ? `, ${size} in a bar` : "";
    const scale = bars.length ? `, 0 to ${words.duration(top)}${grouped}${cut}` : "";
    this.part(".gaps figcaption").textContent = `time between tokens${scale}`;
  }
}

function meansOf(values, size) {
  const groups = Array.from({ length: Math.ceil(values.length / size) }, (_, index) => values.slice(index * size, (index + 1) * size));
  return groups.map((group) => group.reduce((sum, value) => sum + value, 0) / group.length);
}

/** Draw both strips on one scale, which a few long gaps do not flatten: what is above it is cut. */
export function drawGapsTogether(panes) {
  const gaps = panes.flatMap((pane) => pane.gaps).sort((one, other) => one - other);
  const usual = gaps[Math.floor(0.9 * (gaps.length - 1))] ?? 0;
  const top = Math.max(Math.min(gaps.at(-1) ?? 0, 2 * usual), 0.001);
  for (const pane of panes) pane.drawGaps(top);
}
