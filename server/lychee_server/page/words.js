// Numbers, times and errors in words.

const counts = new Intl.NumberFormat("en");

export const NOTHING = "–";
const SPACE = "\u00a0"; // a number stays with its unit

/** A whole number with separators. */
export function count(value) {
  return value === null || value === undefined ? NOTHING : counts.format(Math.round(value));
}

/** A duration given in seconds. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return NOTHING;
  if (seconds === 0) return "0";
  if (seconds >= 100) return `${Math.round(seconds)}${SPACE}s`;
  if (seconds >= 1) return `${Number(seconds.toFixed(seconds >= 10 ? 1 : 2))}${SPACE}s`;
  const milliseconds = seconds * 1000;
  return `${milliseconds.toFixed(milliseconds >= 10 ? 0 : 1)}${SPACE}ms`;
}

/** A share in [0, 1] as a percentage. */
export function percent(share) {
  if (share === null || share === undefined) return NOTHING;
  return share === 0 || share === 1 ? `${100 * share}${SPACE}%` : `${(100 * share).toFixed(1)}${SPACE}%`;
}

/** A budget as it was in force. */
export function budget(value, mode) {
  if (value === "dense" || value === "auto") return value;
  const bound = value === null ? "no bound" : `${count(value)} tokens`;
  return mode && mode !== "topk" ? `${mode}, ${bound}` : bound;
}

const REASONS = {
  request: "as asked",
  tier: "the caller’s tier",
  rule: "a rule of the policy",
  auto: "a share of the prompt",
  default: "the default",
  min_recall: "for the recall asked",
  target_itl: "for the time per token asked",
  pressure: "shrunk: the engine is under pressure",
  dense_below: "short context: ran dense",
};

const FALLBACKS = {
  dense_below: "short context: ran dense",
  budget_covers_context: "budget covers the context: ran dense",
  workspace: "batch too large for a GPU’s scores: ran dense",
};

/** Why a budget is in force: the words of an answer's (or a forecast's) `reason` and `dense_fallback`. */
export function reason(summary) {
  return FALLBACKS[summary.dense_fallback] ?? REASONS[summary.reason] ?? summary.reason;
}

const LEADS = {
  400: "The request was refused",
  401: "This gateway asks for an API key",
  403: "This API key may not do that",
  404: "Not served here",
  413: "The document is too long for this gateway",
  429: "Too many requests at the moment",
  502: "The engine failed on this request",
  503: "The engine cannot answer now",
  504: "The engine was silent for too long",
};

/** An error of the gateway as one paragraph: what happened, the gateway's own words, when to try again. */
export function failure({ status, message, param, retryAfter, requestId }) {
  const lead = LEADS[status] ?? `The gateway answered with status ${status}`;
  const parts = [message ? `${lead}: ${sentence(message)}` : `${lead}.`];
  if (param && !(message ?? "").includes(param)) parts.push(`The field is ${param}.`);
  if (retryAfter) parts.push(`Try again in ${/^\d+$/.test(retryAfter) ? `${retryAfter} s` : retryAfter}.`);
  if (requestId && status >= 500) parts.push(`Request ${requestId}.`);
  return parts.join(" ");
}

function sentence(text) {
  return /[.!?]$/.test(text) ? text : `${text}.`;
}
