// Shows the pools and a card for each node, and finds nodes. Of many nodes it shows the worst, or those that the user
// looks for. It knows nothing of the network.

import { unwatch, watch } from "./charts.js";
import { $, fromTemplate, notice, say } from "./dom.js";
import { lastMoves, told } from "./events.js";
import { has, reasonOf, rowsOf, statesOf, worstFirst } from "./fleet.js";
import { clock, percent, shown } from "./format.js";
import { now, page } from "./state.js";
import { codeOf, errorBesideReason, load } from "./status.js";

const MOST_CARDS = 30; // up to this many nodes are shown in the order of the status; of more, the worst are shown

const cards = new Map(); // by key
let showsAll = false;

/** Show the pools and the nodes that are looked for. */
export function drawPools() {
  const rows = rowsOf(page.status, page.ejected);
  const words = $("#find input").value.toLowerCase().split(/\s+/).filter(Boolean);
  const taken = rows.filter((row) => has(row, words));
  const isLarge = rows.length > MOST_CARDS;
  const visible = (isLarge ? worstFirst(taken) : taken).slice(0, showsAll ? Infinity : MOST_CARDS);
  drawSections(rows, visible);
  const seen = new Set(visible);
  const rest = taken.filter((row) => !seen.has(row));
  say($("#find output"), words.length ? `${taken.length} of ${rows.length} nodes` : "");
  const shownOf = `${visible.length} of ${taken.length} nodes, the worst first; not shown: ${statesOf(rest)}.`;
  say($("#rest span"), rest.length ? shownOf : "");
  say($("#rest button"), showsAll ? `Show the ${MOST_CARDS} worst` : `Show all ${taken.length}`);
  $("#rest").hidden = !rest.length && !(showsAll && taken.length > MOST_CARDS);
}

/** Show all nodes, or only the worst again. */
export function toggleAll() {
  showsAll = !showsAll;
  drawPools();
}

/** Show a section for each pool: totals of all its rows, and cards for its visible ones. */
function drawSections(rows, visible) {
  const sections = new Map([...$("#pools").children].map((section) => [section.dataset.pool, section]));
  const moves = lastMoves(page.history.events);
  const keys = new Set(visible.map((row) => row.key));
  for (const [key, card] of cards) if (!keys.has(key)) forget(key, card);
  for (const pool of new Set(rows.map((row) => row.pool).concat(page.status.pools.map(({ name }) => name)))) {
    const section = sections.get(pool) ?? fromTemplate("#pool-template");
    sections.delete(pool);
    section.dataset.pool = pool;
    if (!section.parentNode) $("#pools").append(section);
    const ofPool = rows.filter((row) => row.pool === pool);
    const held = page.status.pools.find(({ name }) => name === pool) ?? {};
    say($("h2", section), pool);
    say($("header p", section), `${statesOf(ofPool) || "no nodes"} · ${load(ofPool.map((row) => row.node), ", ")}`);
    notice($(".notice", section), codeOf(held, "held"), "Weights are held.", held.held);
    visible
      .filter((row) => row.pool === pool)
      .forEach((row, place) => drawNode(cardAt(place, row.key, $(".nodes", section)), row, moves.get(row.key)));
  }
  for (const section of sections.values()) section.remove();
}

/** Return the card of a node, at a place of a list; made when it is first seen. */
function cardAt(place, key, list) {
  if (!cards.has(key)) {
    const card = fromTemplate("#node-template");
    card.dataset.key = key;
    cards.set(key, card);
    watch(card);
  }
  const card = cards.get(key);
  if (list.children[place] !== card) list.insertBefore(card, list.children[place] ?? null);
  return card;
}

/** Take the card of a node away. */
function forget(key, card) {
  unwatch(card);
  card.remove();
  cards.delete(key);
}

/** Say what is known of a node. */
function drawNode(card, row, move) {
  const { node } = row;
  const kv = percent(node.kv_cache_usage);
  const moved = node.previous_weight !== null && node.previous_weight !== node.weight;
  const change = moved ? `was ${node.previous_weight}` : node.weight === 0 ? "no new requests" : "";
  const error = errorBesideReason(node);
  const reason = reasonOf(row, now());
  const details = [
    node.address ?? "no address",
    node.engines > 1 ? `${node.engines} engines` : "",
    node.preemptions_delta > 0 ? `${node.preemptions_delta} new preemptions` : "",
    node.scrape_seconds === null ? "" : `read in ${Math.round(1000 * node.scrape_seconds)} ms`,
  ];
  card.dataset.state = row.isStillLive ? "live" : row.state;
  card.dataset.cause = node.cause ?? "";
  const texts = {
    h3: node.name,
    ".state": row.shown,
    ".weight b": shown(node.weight),
    ".weight small": row.differs ? `decided, ${row.live} live` : change,
    ".kv b": shown(kv, " %"),
    ".running b": shown(node.running),
    ".waiting b": shown(node.waiting),
    ".reason": error ? `${reason} (${error})` : reason,
    ".details": details.filter(Boolean).join(" · "),
    ".move": move ? `${clock(move.at)} ${told(move)}` : "",
  };
  for (const [selector, text] of Object.entries(texts)) say($(selector, card), text);
  $(".weight", card).style.setProperty("--share", `${(row.isStillLive ? row.live : node.weight) ?? 0}%`);
  $(".kv", card).style.setProperty("--share", `${kv ?? 0}%`);
  $(".charts", card).setAttribute("aria-label", `The last hour of ${node.name}: weight, KV cache, running, waiting`);
}
