import assert from "node:assert/strict";
import test from "node:test";

import { now, page } from "../../roles/nginx_ingress/files/page/state.js";
import { pause, start, wake } from "../../roles/nginx_ingress/files/page/poll.js";
import { node, status } from "./samples.js";

const COLUMNS = ["state", "weight", "reason", "cause"];
const files = new Map(); // what the server has: texts, or a function that fails
const asked = []; // besides work/ejected
let askedForEjected = 0;
const drawn = [];
const timers = [];
let hidden = false;

const stamp = (at) => new Date(1000 * at).toISOString();
const statusAt = (at) => JSON.stringify(status(0, [node()], { decided_at: stamp(at), interval_seconds: 10 }));

/** Return a segment of ticks, one every 10 s, up to and with `to`. */
function segmentOf(from, to, previous = null) {
  const lines = [{ version: 1, previous, columns: COLUMNS }];
  const pools = { llm_cluster: { "node-a": ["up", 100] } };
  for (let at = from; at <= to + 0.001; at += 10) lines.push({ at: stamp(at), pools });
  return lines.map((line) => `${JSON.stringify(line)}\n`).join("");
}

globalThis.fetch = async (path) => {
  if (path === "work/ejected") askedForEjected += 1;
  else asked.push(path);
  const file = files.get(path);
  if (typeof file === "function") return file();
  const headers = { Date: new Date().toUTCString() };
  return file === undefined ? new Response("", { status: 404, headers }) : new Response(file, { headers });
};
// No time passes here: the test says when a timer fires.
globalThis.setTimeout = (callback, milliseconds) => timers.push({ callback, milliseconds });
globalThis.clearTimeout = () => {};
AbortSignal.timeout = () => undefined;

const room = {
  draw: () => drawn.push("all"),
  drawProblems: () => drawn.push("problems"),
  isHidden: () => hidden,
};

/** Let the last timer fire; return what was asked for. */
async function tick() {
  asked.length = 0;
  drawn.length = 0;
  await timers.pop().callback();
  return [...asked];
}

test("the first time the history is asked for too, with the segments before it that the hour needs", async () => {
  const end = now() - 5; // the oldest tick of the hour is 3595 s old, the one before it 3605
  files.set("status.json", statusAt(end));
  files.set("history.jsonl", segmentOf(end - 500, end, "history-000002.jsonl.gz"));
  files.set("history-000002.jsonl.gz", segmentOf(end - 2000, end - 510, "history-000001.jsonl.gz"));
  files.set("history-000001.jsonl.gz", segmentOf(end - 4000, end - 2010, "history-000000.jsonl.gz"));
  await start(room);
  const history = ["history.jsonl", "history-000002.jsonl.gz", "history-000001.jsonl.gz"];
  assert.deepEqual(asked, ["status.json", ...history]);
  assert.equal(askedForEjected, 1);
  assert.deepEqual(drawn, ["all", "all"], "the status is shown before the history is there");
  assert.equal(page.historyWasRead, true);
  assert.equal(page.trouble, null);
  assert.equal(page.history.times.length, 360);
});

test("then each tick takes two requests", async () => {
  for (let ticks = 0; ticks < 3; ticks += 1) {
    files.set("status.json", statusAt(page.history.times.at(-1) + 10));
    const known = page.history.times.at(-1);
    assert.deepEqual(await tick(), ["status.json"]);
    assert.ok(page.history.times.at(-1) > known);
    assert.equal(askedForEjected, 2 + ticks);
  }
});

test("where ticks were missed the history is asked for again; a hidden page waits until it is shown", async () => {
  const end = page.history.times.at(-1) + 100;
  files.set("status.json", statusAt(end));
  files.set("history.jsonl", segmentOf(end - 3650, end));
  hidden = true;
  assert.deepEqual(await tick(), ["status.json"]);
  hidden = false;
  asked.length = 0;
  wake();
  assert.deepEqual(asked, ["status.json"]);
  await new Promise(setImmediate);
  assert.deepEqual(asked, ["status.json", "history.jsonl"]);
  assert.equal(page.history.times.at(-1).toFixed(1), end.toFixed(1));
});

test("a page that is shown again asks nothing while its status is of now", async () => {
  asked.length = 0;
  wake();
  assert.deepEqual(asked, []);
});

test("only names of segments are followed, and not without end", async () => {
  const end = page.history.times.at(-1) + 100;
  files.set("status.json", statusAt(end));
  files.set("history.jsonl", segmentOf(end - 100, end, "../memory.json"));
  assert.deepEqual(await tick(), ["status.json", "history.jsonl"]);
  files.set("status.json", statusAt(end + 100));
  files.set("history.jsonl", segmentOf(end, end + 100, "history-000001.jsonl.gz"));
  files.set("history-000001.jsonl.gz", segmentOf(end, end + 100, "history-000001.jsonl.gz"));
  assert.equal((await tick()).length, 21);
});

test("ejected nodes are asked for at each tick, and are known while nginx does not answer", async () => {
  const nodes = [{ pool: "llm_cluster", node: "node-a", cause: "errors", seconds: 3 }];
  files.set("work/ejected", JSON.stringify({ generation: "0a", nodes }));
  await tick();
  assert.deepEqual(page.ejected, nodes);
  files.set("work/ejected", () => Promise.reject(new TypeError("fetch failed")));
  await tick();
  assert.deepEqual(page.ejected, nodes);
  files.delete("work/ejected");
  await tick();
  assert.deepEqual(page.ejected, []);
});

test("a history that cannot be read is asked for again at the next tick", async () => {
  const end = page.history.times.at(-1) + 200;
  files.set("status.json", statusAt(end));
  files.set("history.jsonl", () => Promise.reject(new TypeError("fetch failed")));
  assert.deepEqual(await tick(), ["status.json", "history.jsonl"]);
  assert.deepEqual(drawn, ["all", "all"]);
  files.set("history.jsonl", segmentOf(end - 3650, end));
  assert.deepEqual(await tick(), ["status.json", "history.jsonl"]);
  assert.deepEqual(await tick(), ["status.json"]);
});

const TROUBLES = {
  missing: () => new Response("", { status: 404, headers: { Date: new Date().toUTCString() } }),
  unreadable: () => new Response("{", { headers: { Date: new Date().toUTCString() } }),
  newer: () => new Response('{"version":2}', { headers: { Date: new Date().toUTCString() } }),
  refused: () => new Response("", { status: 403 }),
  silent: () => Promise.reject(new TypeError("fetch failed")),
};
for (const [cause, answer] of Object.entries(TROUBLES)) {
  test(`what is known stays while status.json is ${cause}`, async () => {
    const known = page.status;
    files.set("status.json", answer);
    await tick();
    assert.equal(page.trouble.cause, cause);
    assert.equal(page.status, known);
    files.set("status.json", JSON.stringify(known));
    await tick();
    assert.equal(page.trouble, null);
  });
}

test("no answer in time is no answer", async () => {
  files.set("status.json", () => Promise.reject(new DOMException("The operation timed out.", "TimeoutError")));
  await tick();
  assert.deepEqual(page.trouble, { cause: "silent", text: "nginx does not answer" });
  files.set("status.json", JSON.stringify(page.status));
  await tick();
});

test("a fault of this page is told, and it goes on", async () => {
  room.draw = () => {
    throw new RangeError("invalid array length");
  };
  await tick();
  assert.deepEqual(drawn, ["problems"]);
  assert.match(page.trouble.text, /cannot show what it read \(invalid array length\)/);
  room.draw = () => drawn.push("all");
  await tick();
  assert.deepEqual(drawn, ["all"]);
  assert.equal(page.trouble, null);
});

test("the next request comes soon after the next tick ends, in half an interval to one and a half", () => {
  const at = (seconds) => {
    page.status = JSON.parse(statusAt(now() - seconds));
    return Math.round(pause(true));
  };
  assert.deepEqual([-20, 1, 5, 9, 60].map(at), [15, 11, 7, 5, 5]);
  assert.equal(pause(false), 10);
  page.status = null;
  assert.equal(pause(true), 5);
});
