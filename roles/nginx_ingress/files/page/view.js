// Shows what the page knows: the banner, the facts of the last tick, the events; nodes.js and charts.js show the rest.
// It knows nothing of the network.

import { drawCharts } from "./charts.js";
import { $, made, notice, say } from "./dom.js";
import { collapsed, toldInFull } from "./events.js";
import { differences, fullest, rowsOf, statesOf } from "./fleet.js";
import { clock, duration, percent, seconds, shortened, shown, whenever, worded } from "./format.js";
import { drawPools } from "./nodes.js";
import { age, interval, isOld, now, page, problems } from "./state.js";
import { codeOf, isFault, load, nodesOf } from "./status.js";

const MOST_EVENTS = 100; // in the list of all
const MANY_NODES = 12; // from so many on there is a field to search them
const SIGNS = { change: "▲", wait: "◷", fault: "✕", gap: "…", node: "◆", weight: "·" }; // by kind of event

/** Show all that is known. */
export function draw() {
  drawProblems();
  if (!page.status) return;
  const rows = rowsOf(page.status, page.ejected);
  const nodes = nodesOf(page.status);
  const most = fullest(rows);
  for (const id of ["#facts", "#hour"]) $(id).hidden = false;
  say($("h1"), host());
  const kv = most && `highest KV ${shown(percent(most.kv_cache_usage), " %")} (${most.name})`;
  say($("#summary"), [statesOf(rows), load(nodes, " · "), kv].filter(Boolean).join(" · "));
  const differing = differences(page.status, rows);
  const headline = rows.some((row) => row.isStillLive) ? "Still live." : "Not as decided.";
  notice($("#live"), differing && "differs", headline, differing);
  $("#find").hidden = nodes.length < MANY_NODES;
  drawFacts(page.status);
  drawPools();
  drawEvents();
  drawCharts();
}

/** Return the name of the ingress, or, of a former version, the address, which several hosts may share. */
const host = () => page.status?.host ?? location.hostname;

/** Say what is wrong, in the banner and in the title. */
export function drawProblems() {
  const found = problems();
  const banner = $("#alert");
  const text = found.map((pair) => pair.join(" ")).join("\n");
  if (banner.dataset.said !== text) {
    banner.dataset.said = text;
    banner.replaceChildren(...found.map(([headline, sentence]) => problemLine(headline, sentence)));
  }
  document.body.classList.toggle("old", isOld() || page.trouble !== null);
  const rows = page.status ? rowsOf(page.status, page.ejected) : [];
  const up = rows.filter((row) => row.state === "up").length;
  const title = found.length ? found[0][0].replace(".", "").toUpperCase() : `${up}/${rows.length} up`;
  const whole = `${title} · ${host()} · vllm-nginx-lb`;
  if (document.title !== whole) document.title = whole;
}

/** Return one line of the banner. */
function problemLine(headline, sentence) {
  const line = made("p", "", "problem");
  line.append(made("b", headline), " ", sentence);
  return line;
}

/** Say the ages, which grow without news. */
export function drawAges() {
  if (!page.status) return;
  const changed = page.status.changed_at;
  say($("#tick-age"), `${duration(age())} ago`);
  tone("#tick-age", isOld() ? "bad" : "");
  say($("#change-age"), changed ? `${duration(now() - seconds(changed))} ago` : "none yet");
}

/** Mark a fact as good, warn, bad or none of them: the style sheet has a colour and a sign for each. */
function tone(selector, value) {
  $(selector).dataset.tone = value;
}

/** Say the facts of the last tick. */
function drawFacts(status) {
  const bad = isFault(status);
  const totals = status.totals ?? {};
  const rest = Object.entries(totals).filter(([name, count]) => name !== "unchanged" && count);
  const draining = status.draining_generations ?? 0;
  const facts = {
    "tick-note": `at ${whenever(status.decided_at)}, one every ${interval()} s`,
    outcome: worded(status.outcome),
    "outcome-note": bad ? `last without a fault: ${whenever(status.succeeded_at)}` : "without a fault",
    "change-note": status.changed_at ? `${worded(status.changed_outcome)} at ${whenever(status.changed_at)}` : "",
    generation: shortened(status.generation),
    "generation-note": status.applied ? "live in nginx" : "not what was decided",
    version: status.package_version ?? "",
    draining: String(draining),
    "draining-note": draining ? "generations still finish their streams" : "all have ended",
    ticks: Object.values(totals).reduce((sum, count) => sum + count, 0).toLocaleString("en"),
    "ticks-note": rest.map(([name, count]) => `${count} ${worded(name)}`).join(", ") || "all unchanged",
  };
  for (const [id, text] of Object.entries(facts)) say($(`#${id}`), text);
  tone("#outcome", bad ? "bad" : status.outcome === "deferred" ? "warn" : "good");
  $("#generation").title = status.generation ?? "";
  notice($("#deferred"), codeOf(status, "deferred"), "A change of weights waits.", status.deferred);
  drawAges();
}

/** List the events: always the latest, and all of them in the list that can be opened. */
export function drawEvents() {
  const events = collapsed(page.history.events, interval());
  const latest = events.filter((event) => event.kind !== "weight").slice(0, 5).map(eventLine);
  const all = $("#all");
  const nothing = page.historyWasRead ? "Nothing happened." : "The history of the last hour is being read.";
  $("#latest").replaceChildren(...(latest.length ? latest : [made("li", nothing, "muted")]));
  say($("summary", all), `${events.length} events in the last hour`);
  if (all.open) $("ol", all).replaceChildren(...events.slice(0, MOST_EVENTS).map(eventLine));
}

/** Return one line of a list of events. */
function eventLine(event) {
  const line = made("li", "", event.kind);
  const text = toldInFull(event);
  const words = made("span", event.until ? `${text} (until ${clock(event.until)})` : text);
  words.title = words.textContent;
  line.append(made("time", clock(event.at)), made("i", SIGNS[event.kind]), words);
  return line;
}
