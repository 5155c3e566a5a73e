// The events of the hour, by the codes and numbers of ticks. Sentences are passed on and never parsed. Pure: this
// module knows neither the DOM nor the network.

import { duration, shortened, worded } from "./format.js";
import { CHANGES, codeOf, isFault } from "./status.js";

/**
 * `at`: seconds. `kind`: change, fault or wait (outcomes of a tick), node (its state moved), weight (only its weight
 * moved) or gap (no ticks). `key`: the node's, or "". `what`: text of this page. `why`: the script's sentence, or null.
 * `code`: what tells this event from others of its kind. `until`: when the last of several equal ones in a row was.
 * @typedef {{at: number, kind: string, key: string, what: string, why: ?string, code: ?string, until?: number}} Event
 */

/** Return what happened to a node or in a tick, and why. */
export const told = ({ what, why }) => (why ? `${what}: ${why}` : what);

/** Return the same with the node's name. */
export const toldInFull = (event) => `${event.key && `${event.key.replace("\n", "/")}: `}${told(event)}`;

/** Add an event once, although both the history and the status after the tick have it. */
function add(events, { why = null, code = null, key = "", ...event }) {
  const name = `${event.at.toFixed(1)} ${event.kind} ${key}`;
  if (!events.has(name)) events.set(name, { ...event, why, code, key });
}

/** Add that a node's state or weight moved, if one of them did. */
export function addMove(events, at, key, before, row) {
  const weight = before.weight === row.weight ? "" : `weight ${before.weight} → ${row.weight}`;
  const state = before.state === row.state ? "" : `${before.state} → ${row.state}`;
  const what = [state, weight].filter(Boolean).join(", ");
  if (what) add(events, { at, kind: state ? "node" : "weight", key, what, why: row.reason, code: row.cause });
}

/** Add that no tick came for some seconds. */
export const addGap = (events, at, span) => add(events, { at, kind: "gap", what: `no tick for ${duration(span)}` });

/** Add the outcome of a tick, unless it is of no interest. */
export function addOutcome(events, at, tick) {
  const what = worded(tick.outcome);
  if (isFault(tick)) {
    add(events, { at, kind: "fault", what, why: tick.error, code: `${tick.outcome} ${codeOf(tick, "error")}` });
  } else if (CHANGES.includes(tick.outcome)) {
    add(events, { at, kind: "change", what: `${what}, generation ${shortened(tick.generation)}` });
  } else if (tick.outcome === "deferred") {
    add(events, { at, kind: "wait", what, why: tick.deferred, code: codeOf(tick, "deferred") });
  }
}

/** Return each node's last move, by key. */
export function lastMoves(events) {
  const moves = new Map();
  for (const event of events.values()) {
    if (event.key && !(moves.get(event.key)?.at > event.at)) moves.set(event.key, event);
  }
  return moves;
}

/** Return events, newest first. Waits and faults of ticks in a row with one code are one event, with `until`. */
export function collapsed(events, interval) {
  const found = [];
  for (const event of [...events.values()].sort((a, b) => a.at - b.at)) {
    const last = found.findLast((each) => each.kind === event.kind);
    const next = last?.code === event.code && event.at - (last.until ?? last.at) < 2.5 * interval;
    // The latest sentence has the present numbers.
    if (next && ["wait", "fault"].includes(event.kind)) Object.assign(last, { until: event.at, why: event.why });
    else found.push({ ...event });
  }
  return found.reverse();
}
