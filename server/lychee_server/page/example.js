// A long document to try things with: the log of a harbour, made here, with one fact somewhere in it.

const NAMES = ["Ines Calder", "Tomas Wray", "Ruth Okafor", "Piet Lindqvist", "Maren Holt", "Dario Penn", "Aila Brandt", "Owen Sayer"];
const SHIPS = ["the Corvina", "the Saint Brannoc", "the Meridian Star", "the Hollin", "the Grey Plover", "the Anneke", "the Lodestar", "the Sula"];
const PLACES = ["the fish quay", "the coal berth", "the inner basin", "the east mole", "the slipway", "the old customs house", "the timber yard", "the pilot station"];
const THINGS = ["the crane", "the tide gauge", "the fog signal", "the mooring winch", "the weighbridge", "the fuel hose", "the lock gate", "the signal mast"];
const WINDS = ["a light wind from the west", "a fresh breeze from the north", "hardly any wind", "gusts from the south-east", "a steady wind off the land"];
const SKIES = ["thin cloud", "clear sky", "low cloud and drizzle", "fog until ten", "showers, then sun"];
const DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

const SENTENCES = [
  (pick) => `${pick(NAMES)} took the watch with ${pick(WINDS)} and ${pick(SKIES)}.`,
  (pick) => `${upper(pick(SHIPS))} came in on the flood and made fast at ${pick(PLACES)}, two lines fore and aft.`,
  (pick) => `${upper(pick(SHIPS))} left ${pick(PLACES)} for the roads, waited there for a pilot, and was out of sight by dusk.`,
  (pick) => `A fitter looked at ${pick(THINGS)} near ${pick(PLACES)}, greased it, and found nothing worse than salt.`,
  (pick) => `${upper(pick(THINGS))} at ${pick(PLACES)} jammed again; ${pick(NAMES)} freed it by hand and asked for a new bearing.`,
  (pick) => `The master of ${pick(SHIPS)} complained of the noise from ${pick(PLACES)} and was told that the work ends on ${pick(DAYS)}.`,
  (pick) => `${pick(NAMES)} walked the length of ${pick(PLACES)} after dark and reported all lamps burning.`,
  (pick) => `The chandler sent rope and paint for ${pick(SHIPS)}; ${pick(NAMES)} signed for them at ${pick(PLACES)}.`,
  (pick) => `Children were fishing from ${pick(PLACES)} beside ${pick(THINGS)} and were sent home before the tide turned.`,
  (pick) => `Nothing else to report but ${pick(SKIES)}, and gulls on ${pick(THINGS)}.`,
  (pick) => `${pick(NAMES)} and ${pick(NAMES)} agreed that ${pick(THINGS)} has to be painted before the winter.`,
  (pick) => `A parcel for ${pick(SHIPS)} was left in the office; ${pick(NAMES)} will take it to ${pick(PLACES)} on ${pick(DAYS)}.`,
];

const FACTS = [
  { say: (code) => `The access code of the north pump house is ${code}.`, ask: "What is the access code of the north pump house?" },
  { say: (code) => `The number of the spare key for the lamp room is ${code}.`, ask: "What is the number of the spare key for the lamp room?" },
  { say: (code) => `The radio code of the lifeboat station is ${code}.`, ask: "What is the radio code of the lifeboat station?" },
];

const ENTRY_SENTENCES = 6;

/**
 * Write a log.
 *
 * @param characters its length, about.
 * @param seed the same seed gives the same log.
 * @returns `{text, question, expected, depth}`, `depth` the fact's place as a share of the text.
 */
export function writeExample(characters, seed) {
  const random = generator(seed);
  const pick = (list) => list[Math.floor(random() * list.length)];
  const fact = pick(FACTS);
  const expected = String(1_000_000 + Math.floor(random() * 9_000_000));
  const depth = 0.2 + 0.6 * random();
  const entries = ["Log of the harbour office at Skerrin Point, as the watches wrote it."];
  let length = entries[0].length;
  let placed = false;
  for (let day = 0; length < characters || !placed; day += 1) {
    const sentences = Array.from({ length: ENTRY_SENTENCES }, () => pick(SENTENCES)(pick));
    if (!placed && length >= depth * characters) {
      sentences.splice(ENTRY_SENTENCES / 2, 0, fact.say(expected));
      placed = true;
    }
    const entry = `${DAYS[day % DAYS.length]}, ${day % 2 ? "night" : "day"} watch. ${sentences.join(" ")}`;
    entries.push(entry);
    length += entry.length + 2;
  }
  return { text: entries.join("\n\n"), question: fact.ask, expected, depth };
}

/** A seed that nobody chose. */
export function freshSeed() {
  return crypto.getRandomValues(new Uint32Array(1))[0];
}

// A small linear congruential generator (Numerical Recipes' constants): the browser's own takes no seed.
function generator(seed) {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

function upper(text) {
  return text[0].toUpperCase() + text.slice(1);
}
