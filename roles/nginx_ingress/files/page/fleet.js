// The nodes as the page shows them, with decided and live weights: which nodes, and in which order. It does for the page
// what view/fleet.py does for the command `status`. Pure: it knows neither the DOM nor the network.

import { duration, seconds, shortened } from "./format.js";
import { codeOf, countedStates, keyOf } from "./status.js";

const STILL_LIVE = "still live"; // shown as the state of a node whose decided weight is 0, and that still gets requests
const EJECTED = "ejected"; // the state of a node that is up, and that nginx's Lua has ejected for some seconds
const RANKS = ["down", "unknown", EJECTED, "up", "drained"]; // the worst first; "up" here is a node with an error
const MOST_NAMES = 3; // names of nodes in one sentence

/**
 * `live`: the weight that nginx runs; undefined where it is not known. `state`: as decided, or "ejected" or "gone".
 * `shown`: the state, or STILL_LIVE. `cause`: of an ejection that lasts.
 * @typedef {{key: string, pool: string, node: object, live: ?number, differs: boolean, isStillLive: boolean,
 *   state: string, shown: string, cause: ?string}} Row
 */

/**
 * Return the nodes in the order of the status, each pool's with those of it that only nginx still knows.
 * @param {object} status @param {{pool: string, node: string, cause: string}[]} ejected
 */
export function rowsOf(status, ejected = []) {
  const causes = new Map(ejected.map((each) => [keyOf(each?.pool, each?.node), each?.cause]));
  const live = status.live_weights;
  const names = new Set([...status.pools.map((pool) => pool.name), ...Object.keys(live ?? {})]);
  return [...names].flatMap((pool) => {
    const nodes = status.pools.find(({ name }) => name === pool)?.nodes ?? [];
    const weights = new Map(Object.entries(live?.[pool] ?? {}));
    const planned = new Set(nodes.map((node) => node.name));
    const gone = [...weights].filter(([name, weight]) => weight && !planned.has(name)).map(([name]) => goneNode(name));
    const liveOf = (node) => weights.get(node.name) ?? (live ? node.weight : undefined);
    return [...nodes, ...gone].map((node) => rowOf(pool, node, liveOf(node), causes.get(keyOf(pool, node.name))));
  });
}

/** Return an entry for a node that nginx knows and the status does not. */
const goneNode = (name) => ({
  ...{ name, state: "gone", weight: 0, previous_weight: null, kv_cache_usage: null, running: null, waiting: null },
  ...{ address: null, scrape_seconds: null, cause: null, reason: "no longer in the configuration" },
});

/** @returns {Row} */
function rowOf(pool, node, live, cause) {
  const differs = live !== undefined && live !== node.weight;
  const isStillLive = differs && node.weight === 0;
  const state = cause && node.state === "up" ? EJECTED : node.state;
  const shown = isStillLive ? STILL_LIVE : state;
  return { key: keyOf(pool, node.name), pool, node, live, differs, isStillLive, state, shown, cause };
}

/** Return a function that compares rows by a list of numbers for each. */
const by = (numbersOf) => (a, b) => {
  const [left, right] = [numbersOf(a), numbersOf(b)];
  const place = left.findIndex((number, i) => number !== right[i]);
  return place < 0 ? 0 : left[place] < right[place] ? -1 : 1;
};

/** Return how bad a node's state is: the lower, the worse. */
function badness({ node, live, differs, isStillLive, state }) {
  if (isStillLive) return [-1, -live];
  const isWell = state === "up" && codeOf(node, "error") === null && !(differs && live === 0);
  const since = state === "drained" && node.drained_since ? seconds(node.drained_since) : Infinity;
  return [isWell ? RANKS.length : RANKS.indexOf(state), since, node.weight, -(node.kv_cache_usage ?? 0)];
}

/** Sort: still live, down, unknown, ejected, with an error, drained (the longest first), then the lowest weight. */
export const worstFirst = (rows) => rows.toSorted(by(badness));

/** Tell whether a node has all the words (in lower case) that the user looks for. */
export function has({ pool, node, shown, cause }, words) {
  const text = [node.name, shown, cause, pool, node.cause, node.reason].join(" ").toLowerCase();
  return words.every((word) => text.includes(word));
}

/** Return why a node has its weight; of one that was drained by hand also how long ago. `now` is in seconds. */
export function reasonOf({ node, isStillLive, state, cause }, now) {
  const age = node.drained_since ? ` (${duration(now - seconds(node.drained_since))} ago)` : "";
  const ejection = state === EJECTED ? `ejected by nginx for a short time (${cause}); ` : "";
  const why = `${ejection}${node.reason}${age}`;
  return isStillLive ? `${node.state}, and nginx still sends it requests: ${why}` : why;
}

/** Return "988 up, 12 down (1 still live)". */
export const statesOf = (rows) =>
  countedStates(rows, (state) => {
    const live = rows.filter((row) => row.isStillLive && row.state === state).length;
    return live ? ` (${live} still live)` : "";
  });

/** Return where nginx runs other weights than the decided ones, those that still get requests first; or null. */
export function differences(status, rows) {
  if (status.live_weights === null) return "It is not known which weights nginx runs.";
  const urgency = ({ isStillLive, node, live }) => [isStillLive ? 0 : 1, -node.weight, -live];
  const found = rows.filter((row) => row.differs).toSorted(by(urgency));
  if (!found.length) return null;
  const names = found.slice(0, MOST_NAMES).map(
    ({ node, live, isStillLive }) =>
      `${node.name} ${isStillLive ? "still gets requests " : ""}(live ${live}, ` +
      `${node.state === "gone" ? node.reason : `decided ${node.weight}`})`,
  );
  if (found.length > MOST_NAMES) names.push(`and ${found.length - MOST_NAMES} more`);
  const count = found.length === 1 ? "1 node differs" : `${found.length} nodes differ`;
  return `nginx runs the weights of generation ${shortened(status.generation)}: ${count}; ${names.join(", ")}.`;
}

/** Return the node whose KV cache is the fullest, or null. */
export const fullest = (rows) =>
  rows.reduce((most, { node }) => ((node.kv_cache_usage ?? -1) > (most?.kv_cache_usage ?? -1) ? node : most), null);
