// Statuses, lines of the history and segments, with what a test wants of them.

export const PAGE = new URL("../../roles/nginx_ingress/files/page/", import.meta.url);
export const START = Date.parse("2026-11-26T10:00:00Z") / 1000;
export const INTERVAL = 10;

/** Return the RFC 3339 time that is some seconds after START. */
export const stamp = (after) => new Date(1000 * (START + after)).toISOString();

/** Return a node of a status. */
export const node = (more = {}) => ({
  name: "node-a",
  state: "up",
  kv_cache_usage: 0.4,
  waiting: 0,
  running: 4,
  weight: 100,
  cause: "kv_level",
  reason: "kv 0.40 < 0.75",
  error: null,
  error_cause: null,
  ...more,
});

/** Return a status, whose only pool is llm_cluster. */
export const status = (after, nodes = [node()], more = {}) => ({
  version: 1,
  decided_at: stamp(after),
  outcome: "unchanged",
  generation: "9f3ac21b04de5566",
  pools: [{ name: "llm_cluster", held: null, held_cause: null, nodes }],
  ...more,
});

/** Return a segment of the history as text. Each tick is [seconds after START, pools, keys of the line]. */
export function segment(columns, ticks, previous = null) {
  const lines = ticks.map(([after, pools, more]) => ({ at: stamp(after), pools, ...more }));
  return [{ version: 1, previous, columns }, ...lines].map((line) => `${JSON.stringify(line)}\n`).join("");
}

/** Return the events of a history as [kind, seconds after START, what, why, code], oldest first. */
export const told = (events) =>
  [...events.values()]
    .sort((a, b) => a.at - b.at)
    .map(({ kind, at, what, why, code }) => [kind, Math.round(at - START), what, why, code]);
