// Reads Prometheus' text format, and turns counters and histograms of two moments into what happened between them.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;

/**
 * Parse an exposition.
 *
 * @returns a Map from a metric's name to its samples, `{labels, value}` each.
 */
export function parse(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const match = line.startsWith("#") ? null : LINE.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] ?? "").matchAll(LABEL)) labels[name] = value;
    if (!found.has(match[1])) found.set(match[1], []);
    found.get(match[1]).push({ labels, value: numberOf(match[3]) });
  }
  return found;
}

/** Sum of a metric over its labels, of those samples that `keep` takes; null where there is none. */
export function total(metrics, name, keep = () => true) {
  const samples = metrics.get(name)?.filter(({ labels }) => keep(labels));
  return samples?.length ? samples.reduce((sum, { value }) => sum + value, 0) : null;
}

/** A histogram over all of its labels: `{count, sum, buckets}`, buckets as `[bound, cumulative count]`, rising. */
export function histogram(metrics, name) {
  const buckets = new Map();
  for (const { labels, value } of metrics.get(`${name}_bucket`) ?? []) {
    const bound = numberOf(labels.le);
    buckets.set(bound, (buckets.get(bound) ?? 0) + value);
  }
  return {
    count: total(metrics, `${name}_count`) ?? 0,
    sum: total(metrics, `${name}_sum`) ?? 0,
    buckets: [...buckets].sort(([one], [other]) => one - other),
  };
}

/** What a counter grew by; one that shrank has started anew. */
export function growth(before, after) {
  if (after === null) return 0;
  return before === null || after < before ? after : after - before;
}

/** What a histogram took in between two moments. */
export function between(before, after) {
  if (after.count < before.count) return after;
  const earlier = new Map(before.buckets);
  return {
    count: after.count - before.count,
    sum: after.sum - before.sum,
    buckets: after.buckets.map(([bound, count]) => [bound, count - (earlier.get(bound) ?? 0)]),
  };
}

/** Mean of a histogram; null when it is empty. */
export function mean({ count, sum }) {
  return count > 0 ? sum / count : null;
}

/** A quantile, straight between the bounds of its bucket as Prometheus does it; null when the histogram is empty. */
export function quantile(share, { count, buckets }) {
  if (!(count > 0)) return null;
  const rank = share * count;
  let lower = 0;
  let below = 0;
  for (const [bound, cumulative] of buckets) {
    if (cumulative >= rank) {
      if (!Number.isFinite(bound)) return lower;
      return lower + ((bound - lower) * (rank - below)) / (cumulative - below);
    }
    lower = bound;
    below = cumulative;
  }
  return lower;
}

function numberOf(text) {
  return text === "+Inf" ? Infinity : text === "-Inf" ? -Infinity : Number(text);
}
