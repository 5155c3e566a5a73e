// Which module may import which, and what the pure ones must not know.

import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import test from "node:test";

import { PAGE } from "./samples.js";

// Lowest first: a module imports only what stands above it.
const ROOMS = [
  "format", "status", "fleet", "events", "history", // pure
  "state", "poll",
  "dom", "marks", "charts", "nodes", "view",
  "main",
];
const PURE = ["format", "status", "fleet", "events", "history"];
const WITHOUT_DOM = [...PURE, "state", "poll"];
const WITHOUT_NETWORK = ROOMS.filter((name) => name !== "poll");
const SENTENCES = /\b(reason|error|held|deferred|why)\??\.(includes|startsWith|endsWith|match|indexOf|replace|slice)\b/;

const source = Object.fromEntries(
  ROOMS.map((name) => [name, readFileSync(new URL(`${name}.js`, PAGE), "utf8")]),
);
const code = (name) => source[name].replace(/^\s*(\/\/|\/\*|\*).*$/gm, "").replace(/ \/\/ .*$/gm, "");

test("every module has its place", () => {
  const found = readdirSync(PAGE).filter((name) => name.endsWith(".js"));
  assert.deepEqual(found.sort(), ROOMS.map((name) => `${name}.js`).sort());
});

for (const [place, name] of ROOMS.entries()) {
  test(`${name}.js is short, says what it is for, and imports only what stands above it`, () => {
    assert.ok(source[name].split("\n").length <= 250);
    assert.match(source[name], /^(\/\*.*\*\/\n)?\/\/ /);
    const imported = [...source[name].matchAll(/ from "\.\/(\w+)\.js"/g)].map((found) => found[1]);
    assert.deepEqual(imported.filter((each) => ROOMS.indexOf(each) >= place || !ROOMS.includes(each)), []);
    assert.equal(imported.length, [...code(name).matchAll(/^(import|\} from) /gm)].length);
  });
}

test("the pure modules know neither the state of the page, nor the DOM, nor the network", () => {
  for (const name of PURE) assert.doesNotMatch(source[name], / from "\.\/(state|poll)\.js"/, name);
  for (const name of WITHOUT_DOM) assert.doesNotMatch(code(name), /\b(document|window|location|uPlot)\b/, name);
  for (const name of WITHOUT_NETWORK) assert.doesNotMatch(code(name), /\b(fetch|XMLHttpRequest|WebSocket)\b/, name);
});

test("no module looks into a sentence, and none lets text become HTML", () => {
  for (const name of ROOMS) {
    assert.doesNotMatch(code(name), SENTENCES, name);
    assert.doesNotMatch(code(name), /\b(innerHTML|outerHTML|insertAdjacentHTML|eval|Function)\b/, name);
  }
});
