import assert from "node:assert/strict";
import test from "node:test";

import { addOutcome, collapsed, lastMoves, told, toldInFull } from "../../roles/nginx_ingress/files/page/events.js";
import { INTERVAL } from "./samples.js";

/** Return the events of outcomes: [seconds, keys of the tick]. */
function eventsOf(ticks) {
  const events = new Map();
  for (const [at, tick] of ticks) addOutcome(events, at, tick);
  return events;
}

const deferred = (deferred_cause, sentence) => ({ outcome: "deferred", deferred: sentence, deferred_cause });
const failed = (error_cause, error) => ({ outcome: "failed", error, error_cause });
const brief = (events) => events.map(({ at, until, why }) => [at, until, why]);

test("waits in a row with one code are one, with the latest sentence, however the sentences differ", () => {
  const events = eventsOf([
    [0, deferred("cooldown", "the last reload was 5 s ago")],
    [10, deferred("cooldown", "quite another sentence")],
    [20, deferred("cooldown", "the last reload was 25 s ago")],
  ]);
  assert.deepEqual(brief(collapsed(events, INTERVAL)), [[0, 20, "the last reload was 25 s ago"]]);
});

test("events with other codes stay apart, however equal their sentences are", () => {
  const waits = eventsOf([[0, deferred("cooldown", "it waits")], [10, deferred("old_workers", "it waits")]]);
  assert.deepEqual(brief(collapsed(waits, INTERVAL)), [[10, undefined, "it waits"], [0, undefined, "it waits"]]);
  const faults = eventsOf([
    [0, failed("nginx_silent", "no")],
    [10, failed("test_failed", "no")],
    [20, { ...failed("test_failed", "no"), outcome: "rolled_back" }],
  ]);
  assert.equal(collapsed(faults, INTERVAL).length, 3);
});

test("former versions wrote no codes: their outcomes in a row are one", () => {
  const events = eventsOf([
    [0, { outcome: "deferred", deferred: "the last reload was 5 s ago" }],
    [10, { outcome: "deferred", deferred: "the last reload was 15 s ago" }],
    [20, { outcome: "failed", error: "nginx -t failed" }],
    [30, deferred("cooldown", "the last reload was 35 s ago")],
  ]);
  assert.deepEqual(brief(collapsed(events, INTERVAL)), [
    [30, undefined, "the last reload was 35 s ago"],
    [20, undefined, "nginx -t failed"],
    [0, 10, "the last reload was 15 s ago"],
  ]);
});

test("what is not of ticks in a row stays apart", () => {
  const events = eventsOf([[0, deferred("cooldown", "a")], [30, deferred("cooldown", "b")]]);
  assert.equal(collapsed(events, INTERVAL).length, 2);
});

test("changes in a row stay apart", () => {
  const changes = eventsOf([0, 10].map((at) => [at, { outcome: "published", generation: "abc" }]));
  assert.deepEqual(collapsed(changes, INTERVAL).map(({ at }) => at), [10, 0]);
});

test("collapsing changes none of the events", () => {
  const events = eventsOf([[0, deferred("cooldown", "a")], [10, deferred("cooldown", "b")]]);
  const before = JSON.stringify([...events]);
  collapsed(events, INTERVAL);
  assert.equal(JSON.stringify([...events]), before);
});

test("a code without a sentence, and an outcome alone, are told", () => {
  const texts = (ticks) => [...eventsOf(ticks).values()].map(told);
  assert.deepEqual(texts([[0, failed("nginx_silent", null)]]), ["failed"]);
  assert.deepEqual(texts([[0, { outcome: "rolled_back", error: null }]]), ["rolled back"]);
  assert.deepEqual(texts([[0, { outcome: "unchanged", error_cause: "file_unwritable", error: "full" }]]), [
    "unchanged: full",
  ]);
  assert.deepEqual(texts([[0, { outcome: "unchanged", error: null, deferred: null }]]), []);
});

test("an event of a node is told with its name in the list of all", () => {
  const event = { key: "llm_cluster\nnode-a", what: "up → down", why: "connection refused" };
  assert.equal(told(event), "up → down: connection refused");
  assert.equal(toldInFull(event), "llm_cluster/node-a: up → down: connection refused");
  assert.equal(toldInFull({ key: "", what: "published", why: null }), "published");
});

test("the last move of a node is its newest event", () => {
  const event = (at, key) => ({ at, key, kind: "weight", what: "", why: null, code: null });
  const events = new Map([event(0, "a"), event(20, "a"), event(10, "b"), event(30, "")].map((it, i) => [i, it]));
  assert.deepEqual([...lastMoves(events)].map(([key, { at }]) => [key, at]), [["a", 20], ["b", 10]]);
});
