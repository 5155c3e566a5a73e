import assert from "node:assert/strict";
import test from "node:test";

import {
  clock,
  duration,
  niceCeiling,
  percent,
  seconds,
  shortened,
  shown,
  whenever,
  worded,
} from "../../roles/nginx_ingress/files/page/format.js";

test("times are read from RFC 3339", () => {
  assert.equal(seconds("1970-01-01T00:01:40.500+00:00"), 100.5);
  for (const text of ["now", "", null, undefined, {}]) assert.ok(Number.isNaN(seconds(text)), text);
});

test("a time of today is told without the date, others with it", () => {
  assert.match(clock(new Date().setHours(7, 8, 9) / 1000), /^07:08:09$/);
  assert.match(clock(0), /^\d+ \w+ \d\d:\d\d:\d\d$/);
  assert.equal(whenever(null), "never");
});

test("durations are told in the unit that fits", () => {
  const told = [-5, 0.4, 119, 120, 7199, 7200, 47 * 3600 + 65 * 60, 48 * 3600, 30 * 86400].map(duration);
  assert.deepEqual(told, ["0 s", "0 s", "119 s", "2 min", "119 min", "2 h 0 min", "2 d", "2 d", "30 d"]);
  assert.equal(duration(3 * 3600 + 300), "3 h 5 min");
});

test("what is not known is a dash, and zero is not", () => {
  assert.deepEqual([shown(null), shown(undefined), shown(0, " %"), shown(7)], ["–", "–", "0 %", "7"]);
  assert.deepEqual([percent(null), percent(undefined), percent(0), percent(0.815)], [null, null, 0, 82]);
  assert.deepEqual([shortened(null), shortened("0123456789abcdef")], ["–", "0123456789ab"]);
});

test("an outcome is told in words, whatever it is", () => {
  assert.deepEqual(["rolled_back", "a_new_one", null].map(worded), ["rolled back", "a new one", "null"]);
});

test("the top of an axis is round, and not below the value", () => {
  assert.deepEqual([0, 3, 4, 5, 9, 10, 11, 45, 99, 101].map(niceCeiling), [4, 4, 4, 6, 10, 10, 20, 60, 100, 200]);
});
