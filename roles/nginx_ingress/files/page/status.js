// Reads status.json: is it valid, what do its codes mean, what is wrong. Codes (`cause`, `error_cause`, …) and
// outcomes decide; the sentences beside them are only handed on. Pure: it knows neither the DOM nor the network.

import { clock, seconds, whenever, worded } from "./format.js";

export const CHANGES = ["reloaded", "published"]; // outcomes
const FAULTS = ["failed", "rolled_back"];
const STATES = ["up", "unknown", "down", "drained"];
// The reason of a node that is up, or has one of these causes, contains its error.
const REASON_HAS_ERROR = ["never_read", "held", "stale", "unreachable", "unreadable", "recovering", "frozen"];

/** Tell whether something is a status that this page can show. */
export const isStatus = (it) =>
  it?.version === 1 && seconds(it.decided_at) > 0 && it.pools?.every?.((pool) => Array.isArray(pool.nodes));

/**
 * Return the code of a sentence, or null if there is none. Former versions wrote sentences without a code: "uncoded".
 * @param {object} it what has both keys @param {string} name of the sentence: error, deferred or held
 */
export const codeOf = (it, name) => it[`${name}_cause`] ?? (it[name] ? "uncoded" : null);

/** Tell whether a tick ended with a fault: it failed, or something beside it did. */
export const isFault = (tick) => FAULTS.includes(tick.outcome) || codeOf(tick, "error") !== null;

/** Return the error of a node that its reason does not contain, or null. */
export const errorBesideReason = (node) =>
  codeOf(node, "error") && node.state !== "up" && !REASON_HAS_ERROR.includes(node.cause) ? node.error : null;

/** Return a node's name in maps. Neither of both names has a line break. */
export const keyOf = (pool, node) => `${pool}\n${node}`;

/** Return the nodes of all pools. */
export const nodesOf = (status) => status.pools.flatMap((pool) => pool.nodes);

/** Return "2 up, 1 down"; `note` returns what follows the count of a state. */
export function countedStates(nodes, note = () => "") {
  const all = [...STATES, "ejected", "gone"];
  const counts = all.map((state) => [nodes.filter((node) => node.state === state).length, state]);
  return counts.filter(([count]) => count).map(([count, state]) => `${count} ${state}${note(state)}`).join(", ");
}

/** Return "12 running, 3 waiting" of the nodes that could be read. */
export const load = (nodes, separator) =>
  ["running", "waiting"]
    .map((name) => `${nodes.reduce((sum, node) => sum + (node[name] ?? 0), 0)} ${name}`)
    .join(separator);

/**
 * Return what is wrong: pairs of a headline and a sentence. No sentence counts seconds, because it is read aloud.
 * @param {?object} status the last one that was read
 * @param {?{cause: string, text: string}} trouble why there is no newer one; cause "missing": there is no file
 * @param {boolean} old whether the status is too old
 * @param {number} interval seconds between two ticks
 */
export function problems(status, trouble, old, interval) {
  if (trouble?.cause === "missing" && !status) {
    const sentence = "No tick has ended yet: status.json is not there. If that lasts: journalctl -u vllm-nginx-lb";
    return [["No data.", sentence]];
  }
  const found = [];
  if (trouble) {
    const rest = status ? `What is shown is of ${whenever(status.decided_at)}.` : "There is nothing to show.";
    found.push(["No news.", `${trouble.text}. ${rest}`]);
  }
  if (old) {
    found.push([
      "Old data.",
      `The last tick was at ${clock(seconds(status.decided_at))}, and one is due every ${interval} s. nginx goes on ` +
        "with the weights it has. On the ingress: systemctl status vllm-nginx-lb.timer; journalctl -u vllm-nginx-lb",
    ]);
  }
  if (status && isFault(status)) {
    const headline = FAULTS.includes(status.outcome) ? `Last tick ${worded(status.outcome)}.` : "Fault.";
    found.push([headline, status.error ?? "nginx goes on with the weights it has."]);
  }
  return found;
}
