// Asks nginx for status.json at each tick, and for the history where ticks are missing. It knows nothing of the DOM:
// main.js hands it the functions that show what was read, and one that tells whether the page is hidden.

import { HOUR, seconds } from "./format.js";
import { addStatus, historyOf, parseSegment, parsed, trim } from "./history.js";
import { age, interval, learnClock, now, page } from "./state.js";
import { isStatus } from "./status.js";

const TIMEOUT = 10_000; // milliseconds
const MOST_SEGMENTS = 20; // two as a rule; with many nodes a segment is full before its hour is over

let view = null; // the functions that start() was handed
let timer = null;
let asking = false;
let askedAt = 0; // seconds of this machine's clock
let gap = true; // ticks are missing in the history, so it has to be read

/**
 * Begin to poll.
 * @param {{draw: function(), drawProblems: function(), isHidden: function(): boolean}} functions
 */
export function start(functions) {
  view = functions;
  return poll();
}

/** Ask now if that is due: in the background, the next timer may be far away. */
export function wake() {
  if (!asking && (gap || Date.now() / 1000 - askedAt > interval())) poll();
}

/** Ask once, show what came, and come back for the next tick. */
async function poll() {
  clearTimeout(timer);
  asking = true;
  const [isNew] = await Promise.all([readStatus(), readEjected()]);
  try {
    if (isNew) {
      gap ||= seconds(page.status.decided_at) - page.history.times.at(-1) > 2 * interval();
      addStatus(page.history, page.status, interval(), !gap);
    }
    // A hidden page reads no history: its timers come once a minute, and each would find ticks missing.
    if (gap && !view.isHidden()) {
      if (isNew) view.draw(); // with many nodes, reading the history takes seconds
      await readHistory();
    }
    trim(page.history, now() - HOUR);
    view.draw();
  } catch (error) {
    page.trouble = { cause: "unexpected", text: `This page cannot show what it read (${error.message})` };
    view.drawProblems();
  }
  asking = false;
  timer = setTimeout(poll, 1000 * pause(isNew));
}

/** Return how many seconds to wait: an interval, corrected so that a tick is seen soon after it has ended. */
export function pause(isNew) {
  const every = interval();
  if (!isNew || !page.status) return every;
  const lag = Math.min(2, every / 2);
  return Math.min(1.5 * every, Math.max(0.5 * every, every + lag - age()));
}

/** Read status.json; tell whether it is another tick's. */
async function readStatus() {
  const before = page.status?.decided_at;
  askedAt = Date.now() / 1000;
  try {
    const text = await ask("status.json", "no-store");
    const status = text === null ? null : parsed(text);
    page.trouble = troubleOf(text, status);
    if (!page.trouble) page.status = status;
  } catch (error) {
    const silent = error.name === "TypeError" || error.name === "TimeoutError";
    page.trouble = { cause: silent ? "silent" : "refused", text: silent ? "nginx does not answer" : error.message };
  }
  return page.status?.decided_at !== before;
}

/** Read which nodes nginx has ejected. If nginx does not answer, the last answer stays; readStatus() reports that. */
async function readEjected() {
  try {
    const { nodes } = parsed(await ask("work/ejected", "no-cache")) ?? {};
    page.ejected = Array.isArray(nodes) ? nodes : [];
  } catch {
    // The next tick tries again.
  }
}

/** Return what is wrong with an answer for status.json, or null. */
function troubleOf(text, status) {
  if (text === null) return { cause: "missing", text: "status.json is gone" };
  if (isStatus(status)) return null;
  if (status?.version > 1) return { cause: "newer", text: "status.json is of a newer version than this page" };
  return { cause: "unreadable", text: "status.json cannot be understood" };
}

/** Read the history of the last hour: the file that is being written, and those before it that are needed. */
async function readHistory() {
  const from = now() - HOUR;
  try {
    const segments = [parseSegment((await ask("history.jsonl", "no-cache")) ?? "")];
    while (segments.length < MOST_SEGMENTS) {
      const { previous, ticks } = segments[0];
      if (!/^history-\d+\.jsonl\.gz$/.test(previous) || ticks[0]?.at <= from) break;
      segments.unshift(parseSegment((await ask(previous, "no-cache")) ?? ""));
    }
    page.history = historyOf(segments, interval(), from);
    gap = false;
  } catch {
    gap = true; // the next tick tries again
  }
  page.historyWasRead = true;
  if (page.status) addStatus(page.history, page.status, interval(), !gap);
}

/** Return the text of a file, or null if there is none. */
async function ask(path, cache) {
  const answer = await fetch(path, { cache, signal: AbortSignal.timeout(TIMEOUT) });
  if (answer.status === 404) return null;
  if (!answer.ok) throw new Error(`nginx answers ${answer.status}`);
  if (cache === "no-store") learnClock(seconds(answer.headers.get("Date")));
  return answer.text();
}
