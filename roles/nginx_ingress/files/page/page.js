// What status.json says now, and the hour before it from the history. First what only computes, then what draws.
//
// Words of nodes are hostile input: they get into the page as textContent only, and onto a canvas not at all.

const HOUR = 3600;
const FALLBACK_INTERVAL = 5; // seconds, until a status.json says how often a tick comes
const MOST_EVENTS = 100; // in the list
const MANY_NODES = 12; // from so many on there is something to find
const CHANGES = ["reloaded", "published"];
const FAULTS = ["failed", "rolled_back"];
const SERIES = ["state", "weight", "kv_cache_usage", "waiting", "running"];

// --- What only computes ---

/**
 * Series are arrays of one length with `times`, by the names of SERIES; a kind is one of SIGNS.
 * @typedef {{at: number, kind: string, text: string, key: string}} Event
 * @typedef {{times: number[], nodes: Map<string, Object<string, Array>>, events: Map<string, Event>}} History
 */

/** Return seconds since 1970 of an RFC 3339 time; NaN of anything else. */
const seconds = (text) => Date.parse(text) / 1000;

/** Return what a node is called in maps; neither name has a line break. */
const keyOf = (pool, node) => `${pool}\n${node}`;

/** Return a history with nothing in it. */
const emptyHistory = () => ({ times: [], nodes: new Map(), events: new Map() });

/**
 * Parse a segment of the history. Lines that are torn are left out.
 * @param {string} text
 * @returns {{previous: ?string, ticks: {at: number, before: ?object, rows: Map<string, object>}[]}} seconds, by key
 */
function parseSegment(text) {
  const lines = text.slice(0, text.lastIndexOf("\n") + 1).split("\n");
  const header = parsed(lines.shift());
  if (header?.version !== 1 || !Array.isArray(header.columns)) return { previous: null, ticks: [] };
  const wanted = [...SERIES, "reason"].map((name) => [name, header.columns.indexOf(name)]);
  const ticks = [];
  for (const line of lines) {
    const tick = parsed(line);
    if (tick?.pools) ticks.push({ at: seconds(tick.at), before: tick.before, rows: rowsOf(tick.pools, wanted) });
  }
  return { previous: header.previous ?? null, ticks };
}

/** Return what JSON says, or null. */
function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** Return the named columns of each node of a line, by key. */
function rowsOf(pools, wanted) {
  const rows = new Map();
  for (const [pool, nodes] of Object.entries(pools)) {
    for (const [node, values] of Object.entries(nodes)) {
      rows.set(keyOf(pool, node), Object.fromEntries(wanted.map(([name, at]) => [name, values[at] ?? null])));
    }
  }
  return rows;
}

/** Return a status.json's nodes as rows of the history. */
function rowsOfStatus(status) {
  const rows = new Map();
  for (const pool of status.pools) for (const node of pool.nodes) rows.set(keyOf(pool.name, node.name), node);
  return rows;
}

/**
 * Append a tick's numbers to a history, and what moved to its events. A tick that is there already changes nothing.
 * @param {History} history
 * @param {number} at seconds, as is interval
 * @param {Map<string, object>} rows by key
 */
function addPoint(history, at, rows, interval) {
  if (at < history.times.at(-1) - interval) forgetFrom(history, at); // the host's clock was set back
  const last = history.times.at(-1);
  if (!(at > last || last === undefined)) return;
  if (at - last > 2.5 * interval) {
    // Nothing is known of the time between, so no line leads through it.
    push(history, last + interval, new Map());
    addEvent(history, at, "gap", `no tick for ${duration(at - last)}`);
  }
  for (const [key, row] of rows) {
    const before = history.nodes.get(key);
    if (before) addMove(history, at, key, lastKnown(before), row);
  }
  push(history, at, rows);
}

/** Append one place to every series: of rows, or nothing. */
function push(history, at, rows) {
  for (const key of rows.keys()) {
    if (!history.nodes.has(key)) {
      history.nodes.set(key, Object.fromEntries(SERIES.map((name) => [name, history.times.map(() => null)])));
    }
  }
  history.times.push(at);
  for (const [key, series] of history.nodes) {
    for (const name of SERIES) series[name].push(rows.get(key)?.[name] ?? null);
  }
}

/** Return the last state and weight of a node, which may be before a gap. */
function lastKnown(series) {
  const at = series.state.findLastIndex((state) => state !== null);
  return { state: series.state[at], weight: series.weight[at] };
}

/** Note that a node's state or weight moved, and why. */
function addMove(history, at, key, before, row) {
  const [pool, node] = key.split("\n");
  const why = row.reason ? `: ${row.reason}` : "";
  const weight = before.weight === row.weight ? "" : `weight ${before.weight} → ${row.weight}`;
  const state = before.state === row.state ? "" : `${before.state} → ${row.state}`;
  const moved = [state, weight].filter(Boolean).join(", ");
  if (moved) addEvent(history, at, state ? "node" : "weight", `${pool}/${node}: ${moved}${why}`, key);
}

/** Add an event once: the history tells it, and the status that followed the tick. */
function addEvent(history, at, kind, text, key = "") {
  const name = `${at.toFixed(1)} ${kind} ${key}`;
  if (!history.events.has(name)) history.events.set(name, { at, kind, text, key });
}

/** Add what became of a tick, if that is worth a place on the time line. */
function addOutcome(history, at, tick) {
  const { outcome, generation, error, deferred } = tick;
  const words = worded(outcome);
  if (FAULTS.includes(outcome) || error) {
    addEvent(history, at, "fault", error ? `${words}: ${error}` : words);
  } else if (CHANGES.includes(outcome)) {
    addEvent(history, at, "change", `${words}, generation ${shortened(generation)}`);
  } else if (outcome === "deferred") {
    addEvent(history, at, "wait", deferred ? `${words}: ${deferred}` : words);
  }
}

/**
 * Return the history that segments hold, oldest first, without what is older than `from`.
 * @returns {History}
 */
function historyOf(segments, interval, from) {
  const history = emptyHistory();
  for (const tick of segments.flatMap((segment) => segment.ticks)) {
    if (tick.before && seconds(tick.before.at) >= from) addOutcome(history, seconds(tick.before.at), tick.before);
    if (tick.at >= from) addPoint(history, tick.at, tick.rows, interval);
  }
  return history;
}

/** Forget what is older than `from`, and nodes of which nothing is left. */
function trim(history, from) {
  const old = history.times.findIndex((at) => at >= from);
  if (old > 0) {
    history.times.splice(0, old);
    for (const [key, series] of history.nodes) {
      for (const name of SERIES) series[name].splice(0, old);
      if (series.state.every((state) => state === null)) history.nodes.delete(key);
    }
  }
  for (const [name, event] of history.events) if (event.at < from) history.events.delete(name);
}

/** Forget what is not older than `at`. */
function forgetFrom(history, at) {
  const first = history.times.findIndex((time) => time >= at);
  history.times.splice(first);
  for (const series of history.nodes.values()) for (const name of SERIES) series[name].splice(first);
  for (const [name, event] of history.events) if (event.at >= at) history.events.delete(name);
}

/** Return the times in which a node was not up: {from, to, state}. */
function spansOf(times, states, interval) {
  const spans = [];
  states.forEach((state, i) => {
    if (state === null || state === "up") return;
    const to = Math.min(times[i + 1] ?? times[i] + interval, times[i] + 2.5 * interval);
    const last = spans.at(-1);
    if (last && last.state === state && last.to >= times[i]) last.to = to;
    else spans.push({ from: times[i], to, state });
  });
  return spans;
}

/** Return each node's last move, by key. */
function lastMoves(history) {
  const moves = new Map();
  for (const event of history.events.values()) {
    if (event.key && !(moves.get(event.key)?.at > event.at)) moves.set(event.key, event);
  }
  return moves;
}

/** Return events newest first; ticks in a row with the same words are one, with `until`. */
function collapsed(events, interval) {
  const found = [];
  for (const event of [...events].sort((a, b) => a.at - b.at)) {
    const last = found.findLast((each) => each.kind === event.kind);
    // A reason counts its seconds, which makes it no other.
    const same = last && last.text.replace(/\d/g, "") === event.text.replace(/\d/g, "");
    const next = same && event.at - (last.until ?? last.at) < 2.5 * interval;
    if (next && ["wait", "fault"].includes(event.kind)) Object.assign(last, { until: event.at, text: event.text });
    else found.push({ ...event });
  }
  return found.reverse();
}

/** Return a round number that is not below a value. */
function niceCeiling(value) {
  const step = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return Math.max(4, [1, 2, 4, 6, 8, 10].map((n) => n * step).find((n) => n >= value));
}

/** Return a time in words: "8 s", "3 min", "2 h 5 min", "3 d". */
function duration(span) {
  const all = Math.max(0, Math.round(span));
  if (all < 120) return `${all} s`;
  if (all < 2 * HOUR) return `${Math.floor(all / 60)} min`;
  if (all < 48 * HOUR) return `${Math.floor(all / HOUR)} h ${Math.floor((all % HOUR) / 60)} min`;
  return `${Math.floor(all / 24 / HOUR)} d`;
}

const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

/** Return a time of the day, with the day if that is not today. */
function clock(at) {
  const moment = new Date(at * 1000);
  const today = moment.toDateString() === new Date().toDateString();
  return today ? CLOCK.format(moment) : `${DAY.format(moment)} ${CLOCK.format(moment)}`;
}

/** Return a generation as short as logs have it. */
const shortened = (generation) => (generation ? String(generation).slice(0, 12) : "–");

/** Return a number, or a dash for what is not known. */
const shown = (value, unit = "") => (value === null || value === undefined ? "–" : `${value}${unit}`);

/** Return a ratio in percent. */
const percent = (ratio) => (ratio === null || ratio === undefined ? null : Math.round(100 * ratio));

/** Return "2 up, 1 down" of nodes. */
function countedStates(nodes) {
  const states = ["up", "unknown", "down", "drained"];
  const counts = states.map((state) => [nodes.filter((node) => node.state === state).length, state]);
  return counts.filter(([count]) => count).map((pair) => pair.join(" ")).join(", ");
}

/** Return the sum of a figure over nodes, of those that could be read. */
const total = (nodes, name) => nodes.reduce((sum, node) => sum + (node[name] ?? 0), 0);

/** Tell whether something is a status that this page can show. */
const isStatus = (it) =>
  it?.version === 1 && seconds(it.decided_at) > 0 && it.pools?.every?.((pool) => Array.isArray(pool.nodes));

// --- What the page knows ---

const page = {
  status: null,
  history: emptyHistory(),
  clock: { least: -Infinity, most: Infinity }, // the server's minus this one, seconds
  fetched: 0, // when status.json was last asked for, seconds of this clock
  trouble: null, // why status.json says nothing: {missing} or {text}
  gap: true, // the history has to be read
  moves: new Map(), // the last of each node, by key
  cards: new Map(), // by key
  plots: new Map(), // every uPlot that is drawn, by its element
  counts: new Map(), // the highest count of requests, by pool
};

/** Return the server's time in seconds: this machine's clock may be wrong. */
const now = () => Date.now() / 1000 + (page.clock.least + page.clock.most || 0) / 2;

/** Return how often a tick comes, in seconds. */
const interval = () => page.status?.interval_seconds || FALLBACK_INTERVAL;

/** Return how old the status is, in seconds. */
const age = () => now() - seconds(page.status.decided_at);

/** Tell whether the status is old. */
const isOld = () => page.status !== null && age() > 3 * interval();

// --- Reading ---

/** Ask for a file of the state; null if it is not there. */
async function ask(path, cache) {
  const answer = await fetch(path, { cache, signal: AbortSignal.timeout(10000) });
  if (answer.status === 404) return null;
  if (!answer.ok) throw new Error(`nginx answers ${answer.status}`);
  if (cache === "no-store") setClock(seconds(answer.headers.get("Date")));
  return answer.text();
}

/** Learn the server's clock. Date has whole seconds, so each one only says what it is between. */
function setClock(date) {
  const least = date - Date.now() / 1000;
  const known = page.clock;
  known.least = Math.max(known.least, least);
  known.most = Math.min(known.most, least + 1);
  if (!(known.least <= known.most)) page.clock = { least, most: least + 1 }; // one of them was set
}

/** Read status.json; tell whether it is another tick's. */
async function readStatus() {
  const before = page.status?.decided_at;
  page.fetched = Date.now() / 1000;
  page.trouble = null;
  try {
    const text = await ask("status.json", "no-store");
    const status = text === null ? null : parsed(text);
    if (text === null) page.trouble = { missing: true };
    else if (isStatus(status)) page.status = status;
    else if (status?.version > 1) page.trouble = { text: "status.json is of a newer version than this page" };
    else page.trouble = { text: "status.json cannot be understood" };
  } catch (error) {
    const silent = error.name === "TypeError" || error.name === "TimeoutError";
    page.trouble = { text: silent ? "nginx does not answer" : error.message };
  }
  return page.status?.decided_at !== before;
}

/** Read the last hour: the segment that is written, and the one before it if that is needed. */
async function readHistory() {
  const from = now() - HOUR;
  try {
    const segments = [parseSegment((await ask("history.jsonl", "no-cache")) ?? "")];
    // As a rule two at most; where nodes are many, a segment is full before its hour is over.
    while (segments.length < 20) {
      const { previous, ticks } = segments[0];
      if (!/^history-\d+\.jsonl\.gz$/.test(previous) || ticks[0]?.at <= from) break;
      segments.unshift(parseSegment((await ask(previous, "no-cache")) ?? ""));
    }
    page.history = historyOf(segments, interval(), from);
    page.gap = false;
  } catch {
    page.gap = true; // the next tick tries again
  }
}

/** Take the status into the history. */
function noteStatus({ fresh = false } = {}) {
  const { history, status } = page;
  const at = seconds(status.decided_at);
  if (!fresh && at - history.times.at(-1) > 2 * interval()) page.gap = true;
  if (!page.gap) addPoint(history, at, rowsOfStatus(status), interval());
  addOutcome(history, at, status);
  // The last change, if its tick was not seen: that was decided within an interval before it.
  const changed = seconds(status.changed_at);
  const ofIt = ({ at, kind }) => (kind === "change" || kind === "fault") && at <= changed && at > changed - interval();
  if (changed && ![...history.events.values()].some(ofIt)) {
    addOutcome(history, changed, { ...status, outcome: status.changed_outcome, error: null });
  }
}

/** Ask once, show what came, and come back for the next tick. */
async function poll() {
  clearTimeout(page.timer);
  page.asking = true;
  const isNew = await readStatus();
  try {
    if (isNew) noteStatus();
    // A page that nobody looks at reads no history: its timers come once a minute, and each would be a gap.
    if (page.gap && !document.hidden) {
      await readHistory();
      if (page.status) noteStatus({ fresh: true });
    }
    trim(page.history, now() - HOUR);
    draw();
  } catch (error) {
    page.trouble = { text: `This page cannot show what it read (${error.message})` };
    drawProblems();
  }
  page.asking = false;
  page.timer = setTimeout(poll, 1000 * pause(isNew));
}

/** Return how many seconds to wait: an interval, corrected so that a tick is seen soon after it has ended. */
function pause(isNew) {
  const every = interval();
  if (!isNew || !page.status) return every;
  const lag = Math.min(2, every / 2);
  return Math.min(1.5 * every, Math.max(0.5 * every, every + lag - age()));
}

// --- Words ---

const $ = (selector, within = document) => within.querySelector(selector);

/** Set a text, if it is another: screen readers read again what is set. */
function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Make an element with a text. */
function made(tag, text, className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  if (className) element.className = className;
  return element;
}

/** Return what is wrong, as pairs of a word and a sentence. Without seconds that count: it is read aloud. */
function problems() {
  const { status, trouble } = page;
  const found = [];
  if (trouble?.missing && !status) {
    return [["No data.", "No tick has ended yet: status.json is not there. If that lasts: journalctl -u vllm-nginx-lb"]];
  }
  if (trouble) {
    const rest = status ? `What is shown is of ${clock(seconds(status.decided_at))}.` : "There is nothing to show.";
    found.push(["No news.", `${trouble.missing ? "status.json is gone" : trouble.text}. ${rest}`]);
  }
  if (isOld()) {
    found.push([
      "Old data.",
      `The last tick was at ${clock(seconds(status.decided_at))}, and one is due every ${interval()} s. nginx goes on ` +
        "with the weights it has. On the ingress: systemctl status vllm-nginx-lb.timer; journalctl -u vllm-nginx-lb",
    ]);
  }
  if (status && (FAULTS.includes(status.outcome) || status.error)) {
    const word = FAULTS.includes(status.outcome) ? `Last tick ${worded(status.outcome)}.` : "Fault.";
    found.push([word, status.error ?? "nginx goes on with the weights it has."]);
  }
  return found;
}

/** Say what is wrong, in the banner and in the title. */
function drawProblems() {
  const found = problems();
  const banner = $("#alert");
  const text = found.map((pair) => pair.join(" ")).join("\n");
  if (banner.dataset.said !== text) {
    banner.dataset.said = text;
    banner.replaceChildren(
      ...found.map(([word, sentence]) => {
        const line = made("p", "", "problem");
        line.append(made("b", word), " ", sentence);
        return line;
      }),
    );
  }
  document.body.classList.toggle("old", isOld() || page.trouble !== null);
  const nodes = page.status?.pools.flatMap((pool) => pool.nodes) ?? [];
  const up = nodes.filter((node) => node.state === "up").length;
  const title = found.length ? found[0][0].replace(".", "").toUpperCase() : `${up}/${nodes.length} up`;
  if (document.title !== `${title} · vllm-nginx-lb`) document.title = `${title} · vllm-nginx-lb`;
}

/** Say the facts that age. */
function drawAges() {
  if (!page.status) return;
  const changed = page.status.changed_at;
  say($("#tick-age"), `${duration(age())} ago`);
  tone("#tick-age", isOld() && "bad");
  say($("#change-age"), changed ? `${duration(now() - seconds(changed))} ago` : "none yet");
}

/** Mark a fact as good, bad or neither; the style sheet has a colour and a sign for each. */
function tone(selector, value) {
  $(selector).dataset.tone = value || "";
}

/** Return words for an outcome. */
const worded = (outcome) => String(outcome).replaceAll("_", " ");

/** Say the facts of the last tick. */
function drawFacts() {
  const { status } = page;
  const bad = FAULTS.includes(status.outcome) || status.error;
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
    draining: String(draining),
    "draining-note": draining ? "former workers finish their streams" : "no former workers are left",
    ticks: Object.values(totals).reduce((sum, count) => sum + count, 0).toLocaleString("en"),
    "ticks-note": rest.map(([name, count]) => `${count} ${worded(name)}`).join(", ") || "all unchanged",
  };
  for (const [id, text] of Object.entries(facts)) say($(`#${id}`), text);
  tone("#outcome", bad ? "bad" : status.outcome === "deferred" ? "warn" : "good");
  $("#generation").title = status.generation ?? "";
  const waits = $("#deferred");
  waits.hidden = !status.deferred;
  if (status.deferred) waits.replaceChildren(made("b", "A change of weights waits."), " ", status.deferred);
  drawAges();
}

/** Return a time of the day, or that there was none. */
const whenever = (text) => (text ? clock(seconds(text)) : "never");

const SIGNS = { change: "▲", wait: "◷", fault: "✕", gap: "…", node: "◆", weight: "·" };

/** Return one line of a list of events. */
function eventLine(event) {
  const line = made("li", "", event.kind);
  const words = made("span", event.until ? `${event.text} (until ${clock(event.until)})` : event.text);
  words.title = words.textContent;
  line.append(made("time", clock(event.at)), made("i", SIGNS[event.kind]), words);
  return line;
}

/** List the events: the latest always, all of them where somebody looks. */
function drawEvents() {
  const events = collapsed(page.history.events.values(), interval());
  const worth = events.filter((event) => event.kind !== "weight");
  const all = $("#all");
  const latest = worth.slice(0, 5).map(eventLine);
  $("#latest").replaceChildren(...(latest.length ? latest : [made("li", "Nothing happened.", "muted")]));
  say($("summary", all), `${events.length} events in the last hour`);
  if (all.open) $("ol", all).replaceChildren(...events.slice(0, MOST_EVENTS).map(eventLine));
}

/** Return the card of a node; made when it is first seen. */
function cardOf(key, list) {
  if (!page.cards.has(key)) {
    const card = $("#node-template").content.firstElementChild.cloneNode(true);
    card.dataset.key = key;
    page.cards.set(key, card);
    inView.observe(card);
  }
  const card = page.cards.get(key);
  if (card.parentNode !== list) list.append(card);
  return card;
}

/** Say what is known of a node. */
function drawNode(card, pool, node) {
  const move = page.moves.get(keyOf(pool.name, node.name));
  const kv = percent(node.kv_cache_usage);
  const moved = node.previous_weight !== null && node.previous_weight !== node.weight;
  card.dataset.state = node.state;
  say($("h3", card), node.name);
  say($(".state", card), node.state);
  say($(".weight b", card), shown(node.weight));
  say($(".weight small", card), moved ? `was ${node.previous_weight}` : node.weight === 0 ? "no new requests" : "");
  say($(".kv b", card), shown(kv, " %"));
  say($(".running b", card), shown(node.running));
  say($(".waiting b", card), shown(node.waiting));
  $(".weight", card).style.setProperty("--share", `${node.weight ?? 0}%`);
  $(".kv", card).style.setProperty("--share", `${kv ?? 0}%`);
  const error = node.error && !node.reason.includes(node.error) ? ` (${node.error})` : "";
  say($(".reason", card), node.reason + error);
  const details = [
    node.address ?? "no address",
    node.engines > 1 ? `${node.engines} engines` : "",
    node.preemptions_delta > 0 ? `${node.preemptions_delta} new preemptions` : "",
    node.scrape_seconds === null ? "" : `read in ${Math.round(1000 * node.scrape_seconds)} ms`,
  ];
  say($(".details", card), details.filter(Boolean).join(" · "));
  say($(".move", card), move ? `${clock(move.at)} ${move.text.slice(pool.name.length + node.name.length + 3)}` : "");
  $(".charts", card).setAttribute("aria-label", `The last hour of ${node.name}: weight, KV cache, running, waiting`);
}

/** Show the pools and their nodes, in the order of the status. */
function drawPools() {
  const pools = $("#pools");
  const sections = new Map([...pools.children].map((section) => [section.dataset.pool, section]));
  const seen = new Set();
  for (const pool of page.status.pools) {
    const section = sections.get(pool.name) ?? $("#pool-template").content.firstElementChild.cloneNode(true);
    sections.delete(pool.name);
    section.dataset.pool = pool.name;
    if (!section.parentNode) pools.append(section);
    say($("h2", section), pool.name);
    const load = `${total(pool.nodes, "running")} running, ${total(pool.nodes, "waiting")} waiting`;
    say($("header p", section), `${countedStates(pool.nodes) || "no nodes"} · ${load}`);
    const notice = $(".notice", section);
    notice.hidden = !pool.held;
    if (pool.held) notice.replaceChildren(made("b", "Weights are held."), " ", pool.held);
    for (const node of pool.nodes) {
      const key = keyOf(pool.name, node.name);
      seen.add(key);
      drawNode(cardOf(key, $(".nodes", section)), pool, node);
    }
  }
  for (const section of sections.values()) section.remove();
  for (const [key, card] of page.cards) if (!seen.has(key)) forget(key, card);
}

/** Take a card away whose node is gone. */
function forget(key, card) {
  inView.unobserve(card);
  undraw(card);
  card.remove();
  page.cards.delete(key);
}

/** Hide the cards that do not have the words that are looked for. */
function find() {
  const words = $("#find input").value.toLowerCase().split(/\s+/);
  let count = 0;
  for (const card of page.cards.values()) {
    const text = `${$("header", card).textContent} ${$(".reason", card).textContent}`.toLowerCase();
    card.hidden = !words.every((word) => text.includes(word));
    count += card.hidden ? 0 : 1;
  }
  say($("#find output"), words.join("") ? `${count} of ${page.cards.size} nodes` : "");
}

// --- Charts ---

const LANES = { node: 0.5, fault: 1.5, gap: 1.5, wait: 2.5, change: 3.5 };
const LANE_WORDS = ["Nodes", "Faults", "Deferred", "Changes"]; // from below
const FONT = "11px system-ui, sans-serif";
const COLOURS =
  "muted grid weight weight-fill kv running running-fill waiting bad warn out bad-span warn-span out-span";
const colours = {};

/** Read the colours of the style sheet, which are others in the dark. */
function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of COLOURS.split(" ")) colours[name] = style.getPropertyValue(`--${name}`);
}

const SPANS = { down: "bad-span", unknown: "warn-span", drained: "out-span" };

/** Return where charts begin: an hour ago, or where the history does, but ten minutes ago at least. */
const shownFrom = () => Math.max(now() - HOUR, Math.min(page.history.times[0] ?? 0, now() - 600));

/** Return the times of charts: with nothing known, the ends of the axis. */
const timesShown = () => (page.history.times.length ? page.history.times : [now() - HOUR, now()]);

/** Return the settings that all charts have in common: one time axis, and one cursor through all of them. */
function commonOptions(element, labelled) {
  const time = {
    stroke: () => colours.muted,
    font: FONT,
    size: labelled ? 22 : 4,
    gap: 5,
    space: 64,
    grid: { stroke: () => colours.grid, width: 1 },
    ticks: { show: false },
    values: (_, splits) => splits.map((at) => (labelled ? CLOCK.format(new Date(at * 1000)).slice(0, 5) : "")),
  };
  return {
    width: element.clientWidth,
    height: element.clientHeight,
    padding: [7, 10, 0, 0],
    legend: { show: false },
    cursor: { sync: { key: "hour" }, y: false, drag: { x: false, y: false } },
    scales: { x: { range: () => [shownFrom(), now()] } },
    axes: [time],
  };
}

/** Return the axis of the values. */
function valueAxis(options) {
  return {
    scale: "y",
    stroke: () => colours.muted,
    font: FONT,
    labelFont: FONT,
    size: 42,
    gap: 4,
    labelSize: 16,
    labelGap: 0,
    grid: { stroke: () => colours.grid, width: 1 },
    ticks: { show: false },
    ...options,
  };
}

/** Return a line of a chart. */
const line = (name, options) => ({ scale: "y", stroke: () => colours[name], points: { show: false }, ...options });

/** Return a line with what is below it. */
const filled = (name, options) => line(name, { width: 2, fill: () => colours[`${name}-fill`], ...options });

/** Return a line whose dashes tell it from the other one where colours do not. */
const dashed = (name) => line(name, { width: 1.5, dash: [5, 3] });

/** Shade when a node was not up, behind the lines. */
function shade(plot, key) {
  const series = page.history.nodes.get(key);
  if (!series) return;
  const { ctx, bbox } = plot;
  for (const span of spansOf(page.history.times, series.state, interval())) {
    const from = Math.max(plot.valToPos(span.from, "x", true), bbox.left);
    const to = Math.min(plot.valToPos(span.to, "x", true), bbox.left + bbox.width);
    ctx.fillStyle = colours[SPANS[span.state]] ?? colours.grid;
    if (to > from) ctx.fillRect(from, bbox.top, to - from, bbox.height);
  }
}

/** Draw a vertical line for each change, thin, and for each fault, dashed. */
function drawMarks(plot) {
  const { ctx, bbox } = plot;
  ctx.save();
  ctx.lineWidth = devicePixelRatio;
  for (const event of page.history.events.values()) {
    if (event.kind !== "change" && event.kind !== "fault") continue;
    const x = Math.round(plot.valToPos(event.at, "x", true)) + 0.5;
    if (x < bbox.left) continue;
    const fault = event.kind === "fault";
    ctx.strokeStyle = fault ? colours.bad : colours.weight;
    ctx.setLineDash(fault ? [3 * devicePixelRatio, 3 * devicePixelRatio] : []);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + (fault ? bbox.height : 5 * devicePixelRatio));
    ctx.stroke();
  }
  ctx.restore();
}

/** Draw the events, each kind on its lane and with its own shape. */
function drawLanes(plot) {
  const { ctx, bbox } = plot;
  const size = 4.5 * devicePixelRatio;
  ctx.save();
  ctx.lineWidth = 2 * devicePixelRatio;
  for (const event of page.history.events.values()) {
    const shape = SHAPES[event.kind];
    const x = plot.valToPos(event.at, "x", true);
    if (shape && x >= bbox.left) shape(ctx, x, plot.valToPos(LANES[event.kind], "y", true), size, plot);
  }
  ctx.restore();
}

/** Fill a shape of corners around a point. */
function fillShape(ctx, colour, corners) {
  ctx.fillStyle = colours[colour];
  ctx.beginPath();
  for (const [x, y] of corners) ctx.lineTo(x, y);
  ctx.fill();
}

const SHAPES = {
  change: (ctx, x, y, r) => fillShape(ctx, "weight", [[x, y - r], [x + r, y + r * 0.8], [x - r, y + r * 0.8]]),
  node: (ctx, x, y, r) => fillShape(ctx, "out", [[x, y - r], [x + r, y], [x, y + r], [x - r, y]]),
  wait: (ctx, x, y, r, plot) => {
    const width = plot.valToPos(plot.scales.x.min + interval(), "x", true) - plot.bbox.left;
    fillShape(ctx, "warn", [[x, y - r / 2], [x + width, y - r / 2], [x + width, y + r / 2], [x, y + r / 2]]);
  },
  fault: drawCross,
  gap: drawCross,
};

/** Draw a cross around a point. */
function drawCross(ctx, x, y, r) {
  ctx.strokeStyle = colours.bad;
  ctx.beginPath();
  for (const side of [-0.8, 0.8]) {
    ctx.moveTo(x - r * 0.8, y - r * side);
    ctx.lineTo(x + r * 0.8, y + r * side);
  }
  ctx.stroke();
}

/** Draw a chart, or give it its new data. */
function plotInto(element, options, data) {
  const known = page.plots.get(element);
  if (known) known.setData(data);
  else if (element.clientWidth) {
    page.plots.set(element, new uPlot(options(), data, element));
    sizes.observe(element);
  }
}

/** Draw the time line of the events. */
function drawTimeline() {
  const element = $("#timeline");
  const times = timesShown();
  plotInto(
    element,
    () => {
      const common = commonOptions(element, true);
      common.scales.y = { range: [0, 4] };
      common.axes.push(valueAxis({ size: 58, splits: () => [0.5, 1.5, 2.5, 3.5], values: () => LANE_WORDS }));
      const readout = $(".readout", element.parentNode);
      const hooks = { draw: [drawLanes], setCursor: [(plot) => readEvents(plot, readout)] };
      return { ...common, series: [{}, { scale: "y", points: { show: false } }], hooks };
    },
    [times, times.map(() => null)],
  );
}

/** Say the events near the cursor. */
function readEvents(plot, readout) {
  const { left } = plot.cursor;
  if (left < 0) return say(readout, "");
  const near = (event) => Math.abs(plot.valToPos(event.at, "x") - left);
  const worth = [...page.history.events.values()].filter((event) => event.kind !== "weight" && near(event) < 8);
  const nearest = worth.sort((a, b) => near(a) - near(b))[0];
  const more = worth.length > 1 ? ` (and ${worth.length - 1} more)` : "";
  return say(readout, nearest ? `${clock(nearest.at)} ${nearest.text}${more}` : clock(plot.posToVal(left, "x")));
}

/** Draw the two charts of a node. */
function drawCharts(card) {
  const { key } = card.dataset;
  const times = timesShown();
  const series = page.history.nodes.get(key);
  const column = (name) => series?.[name] ?? times.map(() => null);
  const hooks = {
    drawClear: [(plot) => shade(plot, key)],
    draw: [drawMarks],
    setCursor: [(plot) => readNode(plot, key, $(".readout", card))],
  };
  const chart = (selector, labelled, y, axis, lines, data) => {
    const element = $(selector, card);
    const options = () => {
      const common = commonOptions(element, labelled);
      common.scales.y = y;
      common.axes.push(valueAxis(axis));
      return { ...common, series: [{}, ...lines], hooks };
    };
    plotInto(element, options, [times, ...data]);
  };
  chart(
    ".shares",
    false,
    { range: [0, 103] }, // room for a line at 100
    { label: "weight, %", splits: () => [0, 50, 100] },
    [filled("weight", { paths: uPlot.paths.stepped({ align: 1 }) }), dashed("kv")],
    [column("weight"), column("kv_cache_usage").map(percent)],
  );
  const most = () => page.counts.get(key.split("\n")[0]) ?? 4;
  chart(
    ".counts",
    true,
    { range: () => [0, most()] },
    { label: "requests", splits: () => [0, most() / 2, most()] },
    [filled("running"), dashed("waiting")],
    [column("running"), column("waiting")],
  );
}

/** Say a node's numbers under the cursor. */
function readNode(plot, key, readout) {
  const at = plot.cursor.left < 0 ? null : plot.cursor.idx;
  const series = page.history.nodes.get(key);
  if (!series || (series.state[at] ?? null) === null) return say(readout, "");
  const words = [
    clock(page.history.times[at]),
    `weight ${shown(series.weight[at])}`,
    `KV ${shown(percent(series.kv_cache_usage[at]), " %")}`,
    `running ${shown(series.running[at])}`,
    `waiting ${shown(series.waiting[at])}`,
    series.state[at],
  ];
  return say(readout, words.join(" · "));
}

/** Let the charts of a pool have one scale for requests, so that they can be compared. */
function measureCounts() {
  const most = new Map();
  for (const [key, series] of page.history.nodes) {
    const pool = key.split("\n")[0];
    let highest = most.get(pool) ?? 0;
    for (const name of ["running", "waiting"]) for (const count of series[name]) if (count > highest) highest = count;
    most.set(pool, highest);
  }
  page.counts = new Map([...most].map(([pool, highest]) => [pool, niceCeiling(highest)]));
}

/** Let go of the charts of a card. */
function undraw(card) {
  for (const element of card.querySelectorAll(".chart")) {
    page.plots.get(element)?.destroy();
    page.plots.delete(element);
    sizes.unobserve(element);
  }
}

// Hundreds of nodes are hundreds of cards, but the charts of only those in view.
const inView = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      target.classList.toggle("in-view", isIntersecting);
      if (isIntersecting) drawCharts(target);
      else undraw(target);
    }
  },
  { rootMargin: "300px" },
);

const sizes = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const width = target.clientWidth;
    const plot = page.plots.get(target);
    if (plot && width && plot.width !== width) plot.setSize({ width, height: target.clientHeight });
  }
});

/** Show all that is known. */
function draw() {
  drawProblems();
  if (!page.status) return;
  for (const id of ["#facts", "#hour"]) $(id).hidden = false;
  page.moves = lastMoves(page.history);
  drawFacts();
  drawPools();
  const nodes = page.status.pools.flatMap((pool) => pool.nodes);
  say($("#summary"), `${countedStates(nodes)} · ${total(nodes, "running")} running · ${total(nodes, "waiting")} waiting`);
  $("#find").hidden = nodes.length < MANY_NODES;
  find();
  measureCounts();
  drawEvents();
  drawTimeline();
  for (const card of page.cards.values()) if (card.classList.contains("in-view")) drawCharts(card);
}

// --- Begin ---

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  readColours();
  for (const plot of page.plots.values()) plot.redraw(false);
});
document.addEventListener("visibilitychange", () => {
  // In the background the next timer may be far away.
  if (document.hidden || page.asking) return;
  if (page.gap || Date.now() / 1000 - page.fetched > interval()) poll();
});
$("#find input").addEventListener("input", find);
$("#all").addEventListener("toggle", drawEvents);
setInterval(() => {
  drawAges();
  drawProblems();
}, 1000);

// For tests.
window.statusPage = { page, parseSegment };
say($("#host"), location.host);
readColours();
poll();
