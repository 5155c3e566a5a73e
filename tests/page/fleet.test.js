import assert from "node:assert/strict";
import test from "node:test";

import {
  differences,
  fullest,
  has,
  reasonOf,
  rowsOf,
  statesOf,
  worstFirst,
} from "../../roles/nginx_ingress/files/page/fleet.js";
import { START, node, stamp, status } from "./samples.js";

const DOWN = { state: "down", weight: 0, kv_cache_usage: null, cause: "unreachable", reason: "connection refused" };
const DRAINED = { state: "drained", weight: 0, cause: "drained_by_operator", reason: "drained by the operator" };
const FLEET = [
  node({ name: "a" }),
  node({ ...DRAINED, name: "b", drained_since: stamp(-3600) }),
  node({ name: "c", weight: 30 }),
  node({ ...DOWN, name: "d" }),
  node({ ...DRAINED, name: "e", drained_since: stamp(-3 * 86400), reason: "drained by the operator: a fan" }),
  node({ name: "f", error_cause: "metric_implausible", error: "x is -1" }),
  node({ name: "g", state: "unknown", weight: 60, cause: "held", reason: "HTTP 500, last weight held" }),
  node({ ...DRAINED, name: "h" }),
  node({ name: "i", kv_cache_usage: 0.9 }),
];

/** Return the rows of FLEET, of which nginx runs some other weights. */
const rowsWith = (weights) => rowsOf(status(0, FLEET, { live_weights: { llm_cluster: weights } }));
const names = (rows) => rows.map((row) => row.node.name).join("");

test("what is wrong comes first, the worst of it before all", () => {
  assert.equal(names(worstFirst(rowsWith({ h: 100, a: 80, i: 0, x: 50 }))), "hxdgifebca");
  assert.equal(names(worstFirst(rowsOf(status(0, FLEET)))), "dgfebhcia");
});

test("a node that is up and ejected is not shown as up", () => {
  const ejected = [["llm_cluster", "c", "errors"], ["llm_cluster", "d", "broken"], ["other", "a", "errors"]];
  const rows = rowsOf(status(0, FLEET), ejected.map(([pool, name, cause]) => ({ pool, node: name, cause })));
  assert.equal(names(worstFirst(rows)), "dgcfebhia");
  assert.equal(statesOf(rows), "3 up, 1 unknown, 1 down, 3 drained, 1 ejected");
  assert.equal(reasonOf(rows[2], START), "ejected by nginx for a short time (errors); kv 0.40 < 0.75");
  assert.deepEqual([rows[2].shown, rows[3].shown], ["ejected", "down"]);
  assert.equal(names(rows.filter((row) => has(row, ["ejected", "errors"]))), "c");
});

test("ejections that are none do no harm", () => {
  for (const it of [null, 7, {}, "x"]) assert.equal(rowsOf(status(0, FLEET), [it]).length, FLEET.length);
});

const WANTED = {
  "": "abcdefghi",
  "drained": "beh",
  "still live": "h",
  "unreachable": "d",
  "llm http": "g",
  "fan operator": "e",
  "nothing": "",
};
for (const [words, found] of Object.entries(WANTED)) {
  test(`nodes are found by all words: ${words}`, () => {
    assert.equal(names(rowsWith(words === "still live" ? { h: 9 } : {}).filter((row) => has(row, words.split(" ")))), found);
  });
}

const DIFFERENCES = [
  [undefined, null],
  [null, "It is not known which weights nginx runs."],
  [{}, null],
  [{ llm_cluster: { a: 80 } }, "1 node differs; a (live 80, decided 100)."],
  [
    { llm_cluster: { a: 80, h: 60 } },
    "2 nodes differ; h still gets requests (live 60, decided 0), a (live 80, decided 100).",
  ],
  [
    { llm_cluster: { x: 50 }, away: { y: 7 } },
    "2 nodes differ; x still gets requests (live 50, no longer in the configuration), " +
      "y still gets requests (live 7, no longer in the configuration).",
  ],
  [
    { llm_cluster: { d: 90, h: 60, a: 0, i: 1 } },
    "4 nodes differ; d still gets requests (live 90, decided 0), h still gets requests (live 60, decided 0), " +
      "i (live 1, decided 100), and 1 more.",
  ],
];
for (const [live_weights, sentence] of DIFFERENCES) {
  test(`where nginx runs other weights is said: ${JSON.stringify(live_weights)}`, () => {
    const it = status(0, FLEET, { live_weights });
    const whole = live_weights && sentence ? `nginx runs the weights of generation 9f3ac21b04de: ${sentence}` : sentence;
    assert.equal(differences(it, rowsOf(it)), whole);
  });
}

test("a node that still gets requests is never shown as if it were out", () => {
  for (const name of ["b", "d", "x"]) {
    const row = rowsWith({ [name]: 7 }).find((each) => each.node.name === name);
    assert.equal(row.shown, "still live");
    assert.match(reasonOf(row, START), /^(drained|down|gone), and nginx still sends it requests: /);
  }
  assert.equal(statesOf(rowsWith({ b: 7 })), "4 up, 1 unknown, 1 down, 3 drained (1 still live)");
  assert.equal(rowsWith({}).find(({ node }) => node.name === "b").shown, "drained");
});

test("a drain has its age", () => {
  const reasons = rowsOf(status(0, FLEET)).filter(({ node }) => node.state === "drained");
  assert.deepEqual(reasons.map((row) => reasonOf(row, START)), [
    "drained by the operator (60 min ago)",
    "drained by the operator: a fan (3 d ago)",
    "drained by the operator",
  ]);
});

test("the fullest KV cache is found, and none where no node could be read", () => {
  assert.equal(fullest(rowsOf(status(0, FLEET))).name, "i");
  assert.equal(fullest(rowsOf(status(0, [node(DOWN)]))), null);
});

const HOSTILE = [7, "x", [], { llm_cluster: null }, { llm_cluster: 7 }, JSON.parse('{"__proto__":{"constructor":3}}')];
for (const live_weights of HOSTILE) {
  test(`live weights that are none do no harm: ${JSON.stringify(live_weights)}`, () => {
    const it = status(0, FLEET, { live_weights });
    assert.ok(worstFirst(rowsOf(it)).length >= FLEET.length);
    differences(it, rowsOf(it));
  });
}
