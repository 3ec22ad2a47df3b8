// A small line chart: a heading with the latest values, lines over the last minutes, values under the pointer.

import { NOTHING } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";
const BOX = { width: 320, height: 96, left: 2, right: 46, top: 8, bottom: 18 };

/** The least round number (1, 2 or 5 times a power of ten) that is not below a value. */
export function roundAbove(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= value * (1 - 1e-9));
}

/** One chart. `series` are `{name, of(point), kind}`; `words` writes a value; `top` fixes the upper end of the scale; `whole`: values are whole numbers. */
export class Chart {
  #points = [];
  #shown = null;

  constructor(parent, { title, series, words, top = null, whole = false }) {
    Object.assign(this, { title, series, words, top, whole });
    this.node = element("section", { class: "chart" });
    const heading = element("h3");
    heading.textContent = title;
    this.values = element("p", { class: "values" });
    this.svg = svg("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img" });
    this.svg.addEventListener("pointermove", (event) => this.#point(event));
    this.svg.addEventListener("pointerleave", () => this.#show(null));
    this.node.append(heading, this.values, this.svg);
    parent.append(this.node);
    this.draw([], 0, 60);
  }

  /** Draw points, each with its `at` in seconds, over the `seconds` before the moment `now`. */
  draw(points, now, seconds) {
    this.#points = points;
    Object.assign(this, { now, seconds });
    const all = points.flatMap((point) => this.series.map(({ of }) => of(point))).filter((value) => value !== null);
    this.empty = all.length === 0;
    this.limit = this.top ?? roundAbove(Math.max(0, ...all));
    this.svg.replaceChildren(...this.#frame(), ...this.series.flatMap((line) => this.#line(line)));
    this.cursor = svg("line", { class: "cursor", y1: BOX.top, y2: BOX.height - BOX.bottom, visibility: "hidden" });
    this.svg.append(this.cursor);
    this.#show(this.#shown);
  }

  #x(at) {
    return BOX.left + (1 - (this.now - at) / this.seconds) * (BOX.width - BOX.left - BOX.right);
  }

  #y(value) {
    const share = Math.min(1, value / this.limit);
    return BOX.height - BOX.bottom - share * (BOX.height - BOX.top - BOX.bottom);
  }

  #frame() {
    const right = BOX.width - BOX.right;
    const parts = [];
    for (const share of [0, 0.5, 1]) {
      const y = this.#y(share * this.limit);
      parts.push(svg("line", { class: "grid", x1: BOX.left, x2: right, y1: y, y2: y }));
      const value = share * this.limit;
      if ((this.empty && !this.top) || (this.whole && !Number.isInteger(value))) continue;
      parts.push(text(right + 5, y + 3.5, this.words(value).replace(/\.0(?!\d)/, "")));
    }
    const below = BOX.height - 5;
    parts.push(text(BOX.left, below, `−${this.seconds / 60} min`), text(right, below, "now", "end"));
    return parts;
  }

  #line({ of, kind }) {
    const runs = [[]];
    for (const point of this.#points) {
      const value = of(point);
      if (value === null) runs.push([]);
      else runs.at(-1).push([this.#x(point.at), this.#y(value)]);
    }
    return runs.filter((run) => run.length > 0).map((run) => {
      const places = run.length === 1 ? [run[0], [run[0][0] + 1, run[0][1]]] : run;
      const d = places.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
      return svg("path", { class: `line ${kind}`, d });
    });
  }

  #point(event) {
    const box = this.svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * BOX.width;
    const distance = (point) => Math.abs(this.#x(point.at) - x);
    this.#show(this.#points.reduce((best, point) => (!best || distance(point) < distance(best) ? point : best), null));
  }

  /** Show the values of one point; null: the latest that has any. */
  #show(point) {
    this.#shown = point && this.#points.includes(point) ? point : null;
    const chosen = this.#shown ?? this.#points.findLast((each) => this.series.some(({ of }) => of(each) !== null));
    const parts = this.series.map(({ name, of, kind }) => {
      const item = element("span", { class: `value ${kind}` });
      const number = element("b");
      const value = chosen ? of(chosen) : null;
      number.textContent = value === null ? NOTHING : this.words(value);
      item.append(number, ` ${name}`);
      return item;
    });
    const when = chosen ? Math.round(this.now - chosen.at) : 0;
    if (when > 0) parts.push(element("span", { class: "when" }, `${when} s ago`));
    this.values.replaceChildren(...parts);
    this.svg.setAttribute("aria-label", this.#summary());
    if (!this.#shown) this.cursor?.setAttribute("visibility", "hidden");
    else for (const [name, value] of [["x1", this.#x(this.#shown.at)], ["x2", this.#x(this.#shown.at)], ["visibility", "visible"]]) this.cursor.setAttribute(name, value);
  }

  #summary() {
    if (this.empty) return `${this.title}: nothing yet`;
    const parts = this.series.map(({ name, of }) => {
      const values = this.#points.map(of).filter((value) => value !== null);
      return values.length ? `${name} between ${this.words(Math.min(...values))} and ${this.words(Math.max(...values))}` : `${name} none`;
    });
    return `${this.title}, last ${this.seconds / 60} min: ${parts.join("; ")}`;
  }
}

function element(name, attributes = {}, content = "") {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (content) made.textContent = content;
  return made;
}

function svg(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function text(x, y, content, anchor = "start") {
  const made = svg("text", { x, y, "text-anchor": anchor });
  made.textContent = content;
  return made;
}
