// What a screen reader is told: one polite line at a time, the latest, never more often than it can be read.

const PAUSE = 2000;

/** Make a function that says a line through a live region. */
export function announcer(region) {
  let waiting = null;
  let timer = null;
  function next() {
    timer = null;
    if (waiting === null) return;
    region.textContent = waiting;
    waiting = null;
    timer = setTimeout(next, PAUSE);
  }
  return (line) => {
    waiting = line;
    if (timer === null) next();
  };
}
