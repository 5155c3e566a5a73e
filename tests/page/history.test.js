import assert from "node:assert/strict";
import test from "node:test";

import {
  addStatus,
  emptyHistory,
  highestCounts,
  historyOf,
  parseSegment,
  spansNotUp,
  trim,
} from "../../roles/nginx_ingress/files/page/history.js";
import { INTERVAL, START, node, segment, stamp, status, told } from "./samples.js";

const KEY = "llm_cluster\nnode-a";
const COLUMNS = ["state", "weight", "kv_cache_usage", "waiting", "running", "reason", "cause"];
const FORMER_COLUMNS = COLUMNS.slice(0, -1);

/** Return a history of one node's rows, of ticks in a row. */
const historyOfRows = (columns, rows) =>
  historyOf(
    [parseSegment(segment(columns, rows.map((row, i) => [i * INTERVAL, { llm_cluster: { "node-a": row } }])))],
    INTERVAL,
    START,
  );

const DAMAGED = {
  "nothing": ["", 0],
  "no JSON": ["no JSON\n", 0],
  "a newer version": ['{"version":2,"columns":["state"]}\n{"at":"2026-11-26T10:00:00Z","pools":{}}\n', 0],
  "a line torn in the middle": [
    '{"version":1,"columns":[]}\n{"at":"2026-11-26T10:00:00Z","po\n{"at":"2026-11-26T10:00:10Z","pools":{}}\n',
    1,
  ],
  "a line torn at the end": ['{"version":1,"columns":[]}\n{"at":"2026-11-26T10:00:00Z","pools":{}}', 0],
  "lines of no tick": ['{"version":1,"columns":[]}\nnull\n7\n"pools"\n{"at":"2026-11-26T10:00:00Z","pools":{}}\n', 1],
};
for (const [name, [text, ticks]] of Object.entries(DAMAGED)) {
  test(`a damaged history is read as far as it goes: ${name}`, () => {
    assert.equal(parseSegment(text).ticks.length, ticks);
  });
}

test("columns are found by their names, and those that are missing are null", () => {
  const [tick] = parseSegment(segment(["weight", "unheard_of", "state"], [[0, { p: { n: [7, {}, "up"] } }]])).ticks;
  assert.deepEqual(
    [...tick.rows],
    [
      [
        "p\nn",
        {
          state: "up",
          weight: 7,
          kv_cache_usage: null,
          waiting: null,
          running: null,
          reason: null,
          cause: null,
        },
      ],
    ],
  );
});

test("names that JavaScript has a meaning for are names of nodes like all others", () => {
  const pools = '{"__proto__":{"constructor":[3]}}';
  const text = `{"version":1,"columns":["weight"]}\n{"at":"2026-11-26T10:00:00Z","pools":${pools}}\n`;
  const [tick] = parseSegment(text).ticks;
  assert.equal(tick.rows.get("__proto__\nconstructor").weight, 3);
});

test("trailing columns that a row leaves out are null", () => {
  const history = historyOfRows(COLUMNS, [["up", 100], ["down", 0, null, null, null, "refused", "unreachable"]]);
  assert.deepEqual(history.nodes.get(KEY), {
    state: ["up", "down"],
    weight: [100, 0],
    kv_cache_usage: [null, null],
    waiting: [null, null],
    running: [null, null],
  });
});

test("a node's moves are events with the cause that the history has", () => {
  const history = historyOfRows(COLUMNS, [
    ["up", 100, 0.1, 0, 0],
    ["up", 60, 0.8, 0, 0, "kv 0.80 >= 0.75", "kv_level"],
    ["up", 60, 0.8, 0, 0],
    ["down", 0, null, null, null, "connection refused, 3 in a row", "unreachable"],
  ]);
  assert.deepEqual(told(history.events), [
    ["weight", 10, "weight 100 → 60", "kv 0.80 >= 0.75", "kv_level"],
    ["node", 30, "up → down, weight 60 → 0", "connection refused, 3 in a row", "unreachable"],
  ]);
});

test("a history of a former version, without codes, has the same series and events", () => {
  const rows = [["up", 100, 0.1, 0, 0], ["down", 0, null, null, null, "connection refused, 3 in a row"]];
  const [former, present] = [FORMER_COLUMNS, COLUMNS].map((columns) => historyOfRows(columns, rows));
  assert.deepEqual(former, present);
  assert.deepEqual(told(former.events), [
    ["node", 10, "up → down, weight 100 → 0", "connection refused, 3 in a row", null],
  ]);
});

test("outcomes are events: those of the wanted time, with codes or without", () => {
  const before = (after, more) => ({ before: { at: stamp(after), error: null, deferred: null, ...more } });
  const text = segment(COLUMNS, [
    [0, {}, before(-INTERVAL, { outcome: "failed", error: "too old" })],
    [10, {}, before(0, { outcome: "reloaded", generation: "9f3ac21b04de5566" })],
    [20, {}, before(10, { outcome: "deferred", deferred: "5 s ago", deferred_cause: "cooldown" })],
    [30, {}, before(20, { outcome: "deferred", deferred: "15 s ago" })],
    [40, {}, before(30, { outcome: "rolled_back", error: "nginx -t failed", error_cause: "test_failed" })],
    [50, {}, before(40, { outcome: "unchanged", error: "metrics.prom cannot be written" })],
    [60, {}],
  ]);
  assert.deepEqual(told(historyOf([parseSegment(text)], INTERVAL, START).events), [
    ["change", 0, "reloaded, generation 9f3ac21b04de", null, null],
    ["wait", 10, "deferred", "5 s ago", "cooldown"],
    ["wait", 20, "deferred", "15 s ago", "uncoded"],
    ["fault", 30, "rolled back", "nginx -t failed", "rolled_back test_failed"],
    ["fault", 40, "unchanged", "metrics.prom cannot be written", "unchanged uncoded"],
  ]);
});

test("segments are one history, from the wanted time on", () => {
  const line = (after) => [after, { llm_cluster: { "node-a": ["up", after, 0, 0, 0] } }];
  const segments = [segment(COLUMNS, [line(0), line(10)]), segment(COLUMNS, [line(20), line(30)])].map(parseSegment);
  const history = historyOf(segments, INTERVAL, START + 10);
  assert.deepEqual(history.times.map((at) => at - START), [10, 20, 30]);
  assert.deepEqual(history.nodes.get(KEY).weight, [10, 20, 30]);
});

test("where ticks are missing there is a place without numbers, and an event", () => {
  const history = emptyHistory();
  addStatus(history, status(0), INTERVAL, true);
  addStatus(history, status(300, [node({ weight: 60 })]), INTERVAL, true);
  assert.deepEqual(history.times.map((at) => at - START), [0, 10, 300]);
  assert.deepEqual(history.nodes.get(KEY).weight, [100, null, 60]);
  assert.deepEqual(told(history.events), [
    ["gap", 300, "no tick for 5 min", null, null],
    ["weight", 300, "weight 100 → 60", "kv 0.40 < 0.75", "kv_level"],
  ]);
});

test("a tick that is known already adds nothing", () => {
  const history = emptyHistory();
  for (let i = 0; i < 3; i += 1) addStatus(history, status(0, [node()], { outcome: "published" }), INTERVAL, true);
  assert.equal(history.times.length, 1);
  assert.equal(history.events.size, 1);
});

test("after the host's clock was set back, what is newer than now is forgotten", () => {
  const history = emptyHistory();
  for (const after of [7200, 7210, 7220]) {
    addStatus(history, status(after, [node()], { outcome: "published" }), INTERVAL, true);
  }
  addStatus(history, status(0), INTERVAL, true);
  addStatus(history, status(10), INTERVAL, true);
  assert.deepEqual(history.times.map((at) => at - START), [0, 10]);
  assert.deepEqual(history.nodes.get(KEY).weight, [100, 100]);
  assert.equal(history.events.size, 0);
});

test("a status adds its outcome where its numbers are not wanted", () => {
  const history = emptyHistory();
  addStatus(history, status(0, [node()], { outcome: "published" }), INTERVAL, false);
  assert.equal(history.times.length, 0);
  assert.deepEqual([...history.events.values()].map(({ kind }) => kind), ["change"]);
});

test("a change whose own tick was not seen is added, without the present error", () => {
  const changed = { changed_at: stamp(25), changed_outcome: "reloaded", error: "full", error_cause: "file_unwritable" };
  const history = emptyHistory();
  addStatus(history, status(30, [node()], changed), INTERVAL, true);
  addStatus(history, status(40, [node()], changed), INTERVAL, true);
  assert.deepEqual(told(history.events).map(([kind, at]) => [kind, at]), [
    ["change", 25],
    ["fault", 30],
    ["fault", 40],
  ]);
});

test("a change whose tick was seen is not added twice", () => {
  const history = emptyHistory();
  addStatus(history, status(0, [node()], { outcome: "published" }), INTERVAL, true);
  addStatus(history, status(10, [node()], { changed_at: stamp(0.05), changed_outcome: "published" }), INTERVAL, true);
  assert.deepEqual(told(history.events).map(([kind, at]) => [kind, at]), [["change", 0]]);
});

test("a node that comes and one that goes have series as long as the times", () => {
  const history = emptyHistory();
  addStatus(history, status(0, [node()]), INTERVAL, true);
  addStatus(history, status(10, [node(), node({ name: "node-b", weight: 7 })]), INTERVAL, true);
  addStatus(history, status(20, [node({ name: "node-b", weight: 7 })]), INTERVAL, true);
  assert.deepEqual(history.nodes.get(KEY).weight, [100, 100, null]);
  assert.deepEqual(history.nodes.get("llm_cluster\nnode-b").weight, [null, 7, 7]);
  assert.equal(history.events.size, 0);
});

test("trim forgets old times, old events, and nodes of which nothing is left", () => {
  const history = emptyHistory();
  addStatus(history, status(0, [node()], { outcome: "published" }), INTERVAL, true);
  addStatus(history, status(10, [node({ name: "node-b" })], { outcome: "published" }), INTERVAL, true);
  trim(history, START + 5);
  assert.deepEqual(history.times, [START + 10]);
  assert.deepEqual([...history.nodes.keys()], ["llm_cluster\nnode-b"]);
  assert.deepEqual([...history.events.values()].map(({ at }) => at), [START + 10]);
  trim(history, START + 5);
  assert.equal(history.times.length, 1);
});

test("times in which a node was not up are spans, and none leads through a gap", () => {
  const times = [0, 10, 20, 30, 100, 110];
  const states = ["up", "down", "down", "unknown", "drained", "up"];
  assert.deepEqual(spansNotUp(times, states, INTERVAL), [
    { from: 10, to: 30, state: "down" },
    { from: 30, to: 55, state: "unknown" },
    { from: 100, to: 110, state: "drained" },
  ]);
  assert.deepEqual(spansNotUp([0], ["down"], INTERVAL), [{ from: 0, to: 10, state: "down" }]);
  assert.deepEqual(spansNotUp([0, 10], [null, null], INTERVAL), []);
});

test("the highest count of requests is that of all nodes of a pool", () => {
  const history = emptyHistory();
  const nodes = [node({ running: 7 }), node({ name: "node-b", running: null, waiting: 12 })];
  const other = { name: "batch", nodes: [node({ running: 1 })] };
  const two = status(0, nodes);
  addStatus(history, { ...two, pools: [...two.pools, other] }, INTERVAL, true);
  assert.deepEqual([...highestCounts(history)], [["llm_cluster", 12], ["batch", 1]]);
});
