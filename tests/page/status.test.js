import assert from "node:assert/strict";
import test from "node:test";

import {
  codeOf,
  countedStates,
  errorBesideReason,
  isFault,
  isStatus,
  load,
  problems,
} from "../../roles/nginx_ingress/files/page/status.js";
import { INTERVAL, node, status } from "./samples.js";

const NO_STATUS = {
  "null": null,
  "an array": [],
  "a string": "status",
  "no time": { version: 1, pools: [] },
  "no pools": { version: 1, decided_at: "2026-11-26T10:00:00Z" },
  "a time that is none": { version: 1, decided_at: "now", pools: [] },
  "pools that are no array": { version: 1, decided_at: "2026-11-26T10:00:00Z", pools: {} },
  "a pool without nodes": { version: 1, decided_at: "2026-11-26T10:00:00Z", pools: [{}] },
  "a newer version": { ...status(0), version: 2 },
};
for (const [name, it] of Object.entries(NO_STATUS)) {
  test(`what is not a status is refused: ${name}`, () => assert.ok(!isStatus(it)));
}

test("a status is taken, with pools or without", () => {
  assert.ok(isStatus(status(0)));
  assert.ok(isStatus({ ...status(0), pools: [] }));
});

test("the code of a sentence is the one beside it; a former version's sentence has none", () => {
  assert.equal(codeOf({ error: "any", error_cause: "timeout" }, "error"), "timeout");
  assert.equal(codeOf({ error: "", error_cause: "timeout" }, "error"), "timeout");
  assert.equal(codeOf({ held: "any" }, "held"), "uncoded");
  assert.equal(codeOf({ deferred: null }, "deferred"), null);
  assert.equal(codeOf({}, "deferred"), null);
});

test("a tick is at fault by its outcome, or by the code of its error", () => {
  assert.ok(isFault({ outcome: "failed" }));
  assert.ok(isFault({ outcome: "rolled_back", error: null, error_cause: null }));
  assert.ok(isFault({ outcome: "unchanged", error: "", error_cause: "file_unwritable" }));
  assert.ok(isFault({ outcome: "published", error: "of a former version" }));
  assert.ok(!isFault({ outcome: "deferred", error: null, error_cause: null, deferred: "nginx -t failed" }));
});

test("an error is beside the reason unless the cause says that the reason has it", () => {
  for (const cause of ["never_read", "held", "stale", "unreachable", "unreadable", "recovering", "frozen"]) {
    assert.equal(errorBesideReason({ cause, reason: "other words", error: "timed out", error_cause: "timeout" }), null);
  }
  for (const cause of ["kv_level", "learned", "no_statistics"]) {
    const it = { state: "up", cause, reason: "other words", error: "x is -1", error_cause: "metric_implausible" };
    assert.equal(errorBesideReason(it), null);
  }
  for (const cause of ["drained_by_operator", "drained_in_inventory", "same_address", undefined]) {
    const it = { cause, reason: "timed out", error: "timed out", error_cause: "timeout" };
    assert.equal(errorBesideReason(it), "timed out");
  }
  assert.equal(errorBesideReason({ cause: "kv_level", reason: "kv", error: null, error_cause: null }), null);
});

test("nodes are counted by state, and their requests summed", () => {
  const nodes = [node(), node({ state: "down", running: null, waiting: null }), node({ waiting: 3 })];
  assert.equal(countedStates(nodes), "2 up, 1 down");
  assert.equal(countedStates([]), "");
  assert.equal(load(nodes, ", "), "8 running, 3 waiting");
});

const headlines = (...known) => problems(...known).map(([headline]) => headline);

test("without trouble there is no problem", () => assert.deepEqual(problems(status(0), null, false, INTERVAL), []));

test("before the first tick there is no data, and later a file that is missing is no news", () => {
  const missing = { cause: "missing", text: "status.json is gone" };
  assert.deepEqual(headlines(null, missing, false, INTERVAL), ["No data."]);
  const [[headline, sentence]] = problems(status(0), missing, false, INTERVAL);
  assert.equal(headline, "No news.");
  assert.match(sentence, /^status\.json is gone\. What is shown is of /);
  assert.deepEqual(problems(null, { cause: "silent", text: "nginx does not answer" }, false, INTERVAL), [
    ["No news.", "nginx does not answer. There is nothing to show."],
  ]);
});

test("old data, and a fault of the last tick, are problems of their own", () => {
  const failed = status(0, [], { outcome: "rolled_back", error: "nginx -t failed", error_cause: "test_failed" });
  assert.deepEqual(headlines(failed, null, true, INTERVAL), ["Old data.", "Last tick rolled back."]);
  const unchanged = { ...failed, outcome: "unchanged" };
  assert.deepEqual(problems(unchanged, null, false, INTERVAL), [["Fault.", "nginx -t failed"]]);
  assert.deepEqual(problems(status(0, [], { outcome: "failed", error: null }), null, false, INTERVAL), [
    ["Last tick failed.", "nginx goes on with the weights it has."],
  ]);
});
