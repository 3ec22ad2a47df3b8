// One streamed answer: its text, its times and the gateway's account of it.

import { chat } from "./api.js";

/**
 * Ask and follow the stream.
 *
 * @param body the request, without `stream`.
 * @param signal aborts it.
 * @param onChange called with the answer so far after every chunk; `times` has one entry a piece of text.
 * @returns the answer; `firstSeconds` and `tokenSeconds` are null where there is nothing to measure.
 */
export async function ask(body, signal, onChange = () => {}) {
  const answer = {
    text: "", reasoning: "", times: [], usage: null, lychee: null, finish: null,
    firstSeconds: null, tokenSeconds: null, seconds: null,
  };
  const started = performance.now();
  let ended = started;
  for await (const { chunk, at } of chat(body, signal)) {
    const choice = chunk.choices?.[0];
    const text = choice?.delta?.content ?? "";
    const reasoning = choice?.delta?.reasoning_content ?? "";
    if (text || reasoning) {
      answer.text += text;
      answer.reasoning += reasoning;
      answer.times.push(at);
      answer.firstSeconds ??= (at - started) / 1000;
    }
    if (text || reasoning || choice?.finish_reason) ended = at;
    answer.finish = choice?.finish_reason ?? answer.finish;
    answer.usage = chunk.usage ?? answer.usage;
    answer.lychee = chunk.lychee ?? answer.lychee;
    answer.tokenSeconds = perToken(answer, ended);
    onChange(answer);
  }
  answer.seconds = (performance.now() - started) / 1000;
  onChange(answer);
  return answer;
}

/** Tokens generated: the engine's count, which knows of tokens without text, or the pieces so far. */
export function tokensOf(answer) {
  return answer.usage?.completion_tokens ?? answer.times.length;
}

// The first token comes out of the prefill; what ends the answer is a token too, though it has no text.
// An answer that arrived in one piece, behind a proxy that buffers or in a tab that was busy, tells nothing.
function perToken(answer, ended) {
  const steps = tokensOf(answer) - 1;
  const milliseconds = ended - answer.times[0];
  return steps > 0 && milliseconds > 0 ? milliseconds / 1000 / steps : null;
}

/** Seconds between the pieces of an answer. */
export function gapsOf(answer) {
  return answer.times.slice(1).map((time, index) => (time - answer.times[index]) / 1000);
}

/**
 * Compare two texts word by word.
 *
 * @returns `{same: true}`, or `{same: false, word}` with the number (from 1) of the first word that differs.
 */
export function compareTexts(one, other) {
  const words = one.split(/\s+/).filter(Boolean);
  const others = other.split(/\s+/).filter(Boolean);
  const length = Math.max(words.length, others.length);
  for (let index = 0; index < length; index += 1) {
    if (words[index] !== others[index]) return { same: false, word: index + 1 };
  }
  return { same: true };
}
