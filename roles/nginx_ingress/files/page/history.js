// The last hour as series of numbers, from the files of the history and from each status.json. Pure: it knows neither
// the DOM nor the network. A history of a former version lacks columns (cause): they are null.

import { addGap, addMove, addOutcome } from "./events.js";
import { seconds } from "./format.js";
import { keyOf } from "./status.js";

const SERIES = ["state", "weight", "kv_cache_usage", "waiting", "running"];
const COLUMNS = [...SERIES, "reason", "cause"];

/**
 * `times`: seconds. `nodes`: by key, the SERIES by name, each as long as `times`. `events`: in events.js.
 * @typedef {{times: number[], nodes: Map<string, Object<string, Array>>, events: Map<string, object>}} History
 */

/** Return a history with nothing in it. */
export const emptyHistory = () => ({ times: [], nodes: new Map(), events: new Map() });

/** Return the value that JSON stands for, or null. */
export function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/**
 * Parse a file of the history. Torn lines are left out.
 * @param {string} text
 * @returns {{previous: ?string, ticks: {at: number, before: ?object, rows: Map<string, object>}[]}} `previous`: the
 *   name of the file before it; `at`: seconds; `before`: the outcome of the tick before; `rows`: COLUMNS by key
 */
export function parseSegment(text) {
  const lines = text.slice(0, text.lastIndexOf("\n") + 1).split("\n");
  const header = parsed(lines.shift());
  if (header?.version !== 1 || !Array.isArray(header.columns)) return { previous: null, ticks: [] };
  const places = COLUMNS.map((name) => [name, header.columns.indexOf(name)]);
  const ticks = lines.map(parsed).filter((tick) => tick?.pools);
  return {
    previous: header.previous ?? null,
    ticks: ticks.map(({ at, before, pools }) => ({ at: seconds(at), before, rows: rowsOf(pools, places) })),
  };
}

/** Return a row for each node of a line, by key. */
function rowsOf(pools, places) {
  const rows = new Map();
  for (const [pool, nodes] of Object.entries(pools)) {
    for (const [node, values] of Object.entries(nodes)) {
      rows.set(keyOf(pool, node), Object.fromEntries(places.map(([name, place]) => [name, values[place] ?? null])));
    }
  }
  return rows;
}

/**
 * Return the history of segments, oldest first, from the time `from` on.
 * @returns {History}
 */
export function historyOf(segments, interval, from) {
  const history = emptyHistory();
  for (const { at, before, rows } of segments.flatMap((segment) => segment.ticks)) {
    if (before && seconds(before.at) >= from) addOutcome(history.events, seconds(before.at), before);
    if (at >= from) addPoint(history, at, rows, interval);
  }
  return history;
}

/** Add the numbers of a status, if `withPoint`, and its outcome. */
export function addStatus(history, status, interval, withPoint) {
  const at = seconds(status.decided_at);
  if (withPoint) {
    const rows = status.pools.flatMap((pool) => pool.nodes.map((node) => [keyOf(pool.name, node.name), node]));
    addPoint(history, at, new Map(rows), interval);
  }
  addOutcome(history.events, at, status);
  // The tick of the last change may not have been seen: it began within an interval before the change.
  const changed = seconds(status.changed_at);
  const isIt = ({ at, kind }) => ["change", "fault"].includes(kind) && at <= changed && at > changed - interval;
  if (changed && ![...history.events.values()].some(isIt)) {
    addOutcome(history.events, changed, { outcome: status.changed_outcome, generation: status.generation });
  }
}

/** Append the numbers of a tick, and an event for each node that moved. A tick that is known changes nothing. */
function addPoint(history, at, rows, interval) {
  if (at < history.times.at(-1) - interval) forgetFrom(history, at); // the host's clock was set back
  const last = history.times.at(-1);
  if (!(at > last || last === undefined)) return;
  if (at - last > 2.5 * interval) {
    // A place without numbers, so that no line leads through the time of which nothing is known.
    push(history, last + interval, new Map());
    addGap(history.events, at, at - last);
  }
  for (const [key, row] of rows) {
    const before = history.nodes.get(key);
    if (before) addMove(history.events, at, key, lastKnown(before), row);
  }
  push(history, at, rows);
}

/** Append one place to every series: of its row, or nulls. */
function push(history, at, rows) {
  for (const key of rows.keys()) {
    if (!history.nodes.has(key)) {
      history.nodes.set(key, Object.fromEntries(SERIES.map((name) => [name, history.times.map(() => null)])));
    }
  }
  history.times.push(at);
  for (const [key, series] of history.nodes) {
    for (const name of SERIES) series[name].push(rows.get(key)?.[name] ?? null);
  }
}

/** Return the last state and weight of a node; they may be from before a gap. */
function lastKnown(series) {
  const place = series.state.findLastIndex((state) => state !== null);
  return { state: series.state[place], weight: series.weight[place] };
}

/** Forget what is older than `from`. */
export function trim(history, from) {
  const old = history.times.findIndex((at) => at >= from);
  if (old > 0) cut(history, 0, old);
  for (const [name, event] of history.events) if (event.at < from) history.events.delete(name);
}

/** Forget what is not older than `at`. */
function forgetFrom(history, at) {
  cut(history, history.times.findIndex((time) => time >= at), Infinity);
  for (const [name, event] of history.events) if (event.at >= at) history.events.delete(name);
}

/** Take `count` places out of all series, and forget nodes of which nothing is left. */
function cut(history, first, count) {
  history.times.splice(first, count);
  for (const [key, series] of history.nodes) {
    for (const name of SERIES) series[name].splice(first, count);
    if (series.state.every((state) => state === null)) history.nodes.delete(key);
  }
}

/** Return the times in which a node was not up: {from, to, state}. */
export function spansNotUp(times, states, interval) {
  const spans = [];
  states.forEach((state, i) => {
    if (state === null || state === "up") return;
    const to = Math.min(times[i + 1] ?? times[i] + interval, times[i] + 2.5 * interval);
    const last = spans.at(-1);
    if (last && last.state === state && last.to >= times[i]) last.to = to;
    else spans.push({ from: times[i], to, state });
  });
  return spans;
}

/** Return the highest count of requests of each pool, by its name. */
export function highestCounts(history) {
  const highest = new Map();
  for (const [key, { running, waiting }] of history.nodes) {
    const [pool] = key.split("\n");
    highest.set(pool, [running, waiting].flat().reduce((most, count) => Math.max(most, count), highest.get(pool) ?? 0));
  }
  return highest;
}
