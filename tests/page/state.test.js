import assert from "node:assert/strict";
import test from "node:test";

import { age, interval, isOld, learnClock, now, page } from "../../roles/nginx_ingress/files/page/state.js";
import { status } from "./samples.js";

const here = () => Date.now() / 1000;
const near = (found, wanted, most = 1) => assert.ok(Math.abs(found - wanted) <= most, `${found} is not ${wanted}`);

test("until it is known, the server's clock is this one", () => near(now(), here(), 0.1));

test("each whole second of the server narrows down what its clock is ahead by", () => {
  // The server is 100.3 s ahead, and cuts its seconds off.
  for (let at = 0; at < 20; at += 0.15) learnClock(Math.floor(1000 + at + 100.3), 1000 + at);
  near(now() - here(), 100.3, 0.1);
});

test("a clock that was set is learnt anew", () => {
  learnClock(5000, 9000);
  near(now() - here(), -4000 + 0.5, 0.1);
});

test("a status is old after three intervals of the server's clock", () => {
  assert.equal(isOld(), false);
  assert.equal(interval(), 5);
  learnClock(0, 0);
  page.status = status(0, [], { interval_seconds: 10, decided_at: new Date(1000 * (now() - 29)).toISOString() });
  near(age(), 29, 0.1);
  assert.equal(isOld(), false);
  page.status.decided_at = new Date(1000 * (now() - 31)).toISOString();
  assert.equal(isOld(), true);
  page.status = null;
});
