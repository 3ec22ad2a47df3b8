// The live charts: asks /metrics every two seconds and keeps five minutes of it.

import { request } from "./api.js";
import { Chart } from "./chart.js";
import { between, growth, histogram, mean, parse, quantile, total } from "./prometheus.js";
import * as words from "./words.js";

const PERIOD = 2;
const KEPT = 300;
const WINDOW = 30;
const HISTOGRAMS = {
  first: "lychee_time_to_first_token_seconds",
  gap: "lychee_inter_token_latency_seconds",
  budget: "lychee_effective_budget_tokens",
  attended: "lychee_attended_fraction_ratio",
  recall: "lychee_recall_ratio",
};

/** What is kept of one scrape. */
export function sampleOf(text, at) {
  const metrics = parse(text);
  const sample = { at, inFlight: total(metrics, "lychee_requests_in_flight") };
  for (const [name, metric] of Object.entries(HISTOGRAMS)) sample[name] = histogram(metrics, metric);
  sample.failed = total(metrics, "lychee_requests_total", ({ route, status }) => route !== "other" && Number(status) >= 400);
  // Only a gateway with a speed curve knows what its sparse answers would have taken dense.
  sample.hasCurve = metrics.has("lychee_speed_curve_info");
  sample.liveSeconds = total(metrics, "lychee_speedup_live_seconds_total", isSparse);
  sample.denseSeconds = total(metrics, "lychee_speedup_dense_seconds_total", isSparse);
  return sample;
}

function isSparse({ decoding }) {
  return decoding === "sparse";
}

/** A point of the charts: what happened between two samples. */
export function pointOf(before, after) {
  const parts = {};
  for (const name of Object.keys(HISTOGRAMS)) parts[name] = between(before[name], after[name]);
  const seconds = after.at - before.at;
  const liveSeconds = growth(before.liveSeconds, after.liveSeconds);
  const busy = parts.gap.count > 0 || after.inFlight > 0;
  return {
    at: after.at,
    firstMedian: quantile(0.5, parts.first),
    firstHigh: quantile(0.95, parts.first),
    gapMedian: quantile(0.5, parts.gap),
    gapHigh: quantile(0.95, parts.gap),
    tokensPerSecond: busy ? parts.gap.count / seconds : 0,
    inFlight: after.inFlight,
    failed: growth(before.failed, after.failed),
    budget: mean(parts.budget),
    attended: mean(parts.attended),
    recall: mean(parts.recall),
    speedup: liveSeconds > 0 ? growth(before.denseSeconds, after.denseSeconds) / liveSeconds : null,
  };
}

const CHARTS = [
  {
    title: "Time to first token",
    words: words.duration,
    series: [
      { name: "median", kind: "one", of: (point) => point.firstMedian },
      { name: "95th percentile", kind: "two", of: (point) => point.firstHigh },
    ],
  },
  {
    title: "Time per token",
    words: words.duration,
    series: [
      { name: "median", kind: "one", of: (point) => point.gapMedian },
      { name: "95th percentile", kind: "two", of: (point) => point.gapHigh },
    ],
  },
  {
    title: "Throughput of streams",
    words: (value) => (value >= 10 ? words.count(value) : String(Number(value.toFixed(1)))),
    series: [{ name: "tokens per second", kind: "one", of: (point) => point.tokensPerSecond }],
  },
  {
    title: "Requests",
    whole: true,
    words: (value) => String(Number(value.toFixed(1))),
    series: [
      { name: "in flight", kind: "one", of: (point) => point.inFlight },
      { name: "not answered, in 30 s", kind: "two", of: (point) => point.failed },
    ],
  },
  {
    title: "Budget in force",
    words: words.count,
    series: [{ name: "tokens, mean", kind: "one", of: (point) => point.budget }],
  },
  {
    title: "Recall and attended share",
    words: words.percent,
    top: 1,
    series: [
      { name: "recall, mean", kind: "one", of: (point) => point.recall },
      { name: "attended, mean", kind: "two", of: (point) => point.attended },
    ],
  },
];

const SPEEDUP_CHART = {
  title: "Speedup over the dense curve",
  words: (value) => `${Number(value.toFixed(2))}×`,
  series: [{ name: "decode time, sparse answers", kind: "one", of: (point) => point.speedup }],
};

/** The section with the charts. */
export class Live {
  #samples = [];
  #points = [];
  #timer = null;
  #paused = false;

  constructor(parent, button, hint) {
    this.charts = [...CHARTS, SPEEDUP_CHART].map((chart) => new Chart(parent, chart));
    this.speedup = this.charts.at(-1).node;
    this.speedup.hidden = true;
    this.button = button;
    this.hint = hint;
    this.usual = [...hint.childNodes];
    button.addEventListener("click", () => this.#toggle());
    document.addEventListener("visibilitychange", () => this.#schedule(0));
    this.#schedule(0);
  }

  #toggle() {
    this.#paused = !this.#paused;
    this.button.setAttribute("aria-pressed", String(this.#paused));
    this.button.textContent = this.#paused ? "Go on" : "Pause";
    this.#schedule(0);
  }

  // A tab that nobody looks at asks nothing; nor does a paused one.
  #schedule(seconds) {
    clearTimeout(this.#timer);
    if (!this.#paused && !document.hidden) this.#timer = setTimeout(() => this.#look(), 1000 * seconds);
  }

  async #look() {
    try {
      const text = await (await request("metrics", { headers: { accept: "text/plain" } })).text();
      this.add(sampleOf(text, performance.now() / 1000));
      this.hint.replaceChildren(...this.usual);
    } catch (error) {
      this.hint.textContent = `The charts stand still: ${error.message}`;
    }
    this.#schedule(PERIOD);
  }

  /** Take a sample in and draw. */
  add(sample) {
    const now = sample.at;
    // After a pause nothing recent is there to compare with: the line has a gap.
    this.#samples = this.#samples.filter(({ at }) => at > now - 2 * WINDOW);
    const before = this.#samples.findLast(({ at }) => at <= now - WINDOW) ?? this.#samples[0];
    this.#samples.push(sample);
    this.speedup.hidden = !sample.hasCurve;
    if (before) this.#points.push(pointOf(before, sample));
    this.#points = this.#points.filter(({ at }) => at > now - KEPT);
    // Whole minutes, as many as there are to show.
    const minutes = Math.ceil((now - (this.#points[0]?.at ?? now)) / 60);
    for (const chart of this.charts) chart.draw(this.#points, now, 60 * Math.max(1, minutes));
  }
}
