// What the page knows now. poll.js writes it, the others read it. It knows neither the DOM nor the network.

import { seconds } from "./format.js";
import { emptyHistory } from "./history.js";
import { problems as problemsOf } from "./status.js";

const FALLBACK_INTERVAL = 5; // seconds, until a status.json says how often a tick comes

export const page = {
  status: null, // the last status.json that could be read
  history: emptyHistory(),
  historyWasRead: false, // true also after a try that failed
  ejected: [], // the nodes that nginx has ejected now: {pool, node, cause}
  trouble: null, // why there is no newer status.json: {cause, text}
};

let offset = { least: -Infinity, most: Infinity }; // the server's clock minus this one, seconds

/** Learn the server's clock from a Date header. It has whole seconds, so each one only narrows the offset down. */
export function learnClock(date, here = Date.now() / 1000) {
  const least = date - here;
  const narrower = { least: Math.max(offset.least, least), most: Math.min(offset.most, least + 1) };
  // Where both contradict each other, one of the clocks was set.
  offset = narrower.least <= narrower.most ? narrower : { least, most: least + 1 };
}

/** Return the server's time in seconds: the clock of this machine may be wrong. */
export const now = () => Date.now() / 1000 + (offset.least + offset.most || 0) / 2;

/** Return how often a tick comes, in seconds. */
export const interval = () => page.status?.interval_seconds || FALLBACK_INTERVAL;

/** Return how old the status is, in seconds. */
export const age = () => now() - seconds(page.status.decided_at);

/** Tell whether the status is too old. */
export const isOld = () => page.status !== null && age() > 3 * interval();

/** Return what is wrong now. */
export const problems = () => problemsOf(page.status, page.trouble, isOld(), interval());
