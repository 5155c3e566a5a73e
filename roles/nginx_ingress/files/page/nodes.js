// Shows the pools and a card for each node, and finds nodes. It knows nothing of the network.

import { unwatch, watch } from "./charts.js";
import { $, fromTemplate, notice, say } from "./dom.js";
import { lastMoves, told } from "./events.js";
import { clock, percent, shown } from "./format.js";
import { page } from "./state.js";
import { codeOf, countedStates, errorBesideReason, keyOf, load } from "./status.js";

const cards = new Map(); // by key

/** Show the pools and their nodes, in the order of the status. */
export function drawPools() {
  const sections = new Map([...$("#pools").children].map((section) => [section.dataset.pool, section]));
  const moves = lastMoves(page.history.events);
  const seen = new Set();
  for (const pool of page.status.pools) {
    const section = sections.get(pool.name) ?? fromTemplate("#pool-template");
    sections.delete(pool.name);
    section.dataset.pool = pool.name;
    if (!section.parentNode) $("#pools").append(section);
    say($("h2", section), pool.name);
    say($("header p", section), `${countedStates(pool.nodes) || "no nodes"} · ${load(pool.nodes, ", ")}`);
    notice($(".notice", section), codeOf(pool, "held"), "Weights are held.", pool.held);
    for (const node of pool.nodes) {
      const key = keyOf(pool.name, node.name);
      seen.add(key);
      drawNode(cardOf(key, $(".nodes", section)), node, moves.get(key));
    }
  }
  for (const section of sections.values()) section.remove();
  for (const [key, card] of cards) if (!seen.has(key)) forget(key, card);
}

/** Return the card of a node; made when it is first seen. */
function cardOf(key, list) {
  if (!cards.has(key)) {
    const card = fromTemplate("#node-template");
    card.dataset.key = key;
    cards.set(key, card);
    watch(card);
  }
  const card = cards.get(key);
  if (card.parentNode !== list) list.append(card);
  return card;
}

/** Take the card of a node away that is gone. */
function forget(key, card) {
  unwatch(card);
  card.remove();
  cards.delete(key);
}

/** Say what is known of a node. */
function drawNode(card, node, move) {
  const kv = percent(node.kv_cache_usage);
  const moved = node.previous_weight !== null && node.previous_weight !== node.weight;
  const error = errorBesideReason(node);
  const details = [
    node.address ?? "no address",
    node.engines > 1 ? `${node.engines} engines` : "",
    node.preemptions_delta > 0 ? `${node.preemptions_delta} new preemptions` : "",
    node.scrape_seconds === null ? "" : `read in ${Math.round(1000 * node.scrape_seconds)} ms`,
  ];
  card.dataset.state = node.state;
  card.dataset.cause = node.cause ?? "";
  const texts = {
    h3: node.name,
    ".state": node.state,
    ".weight b": shown(node.weight),
    ".weight small": moved ? `was ${node.previous_weight}` : node.weight === 0 ? "no new requests" : "",
    ".kv b": shown(kv, " %"),
    ".running b": shown(node.running),
    ".waiting b": shown(node.waiting),
    ".reason": error ? `${node.reason} (${error})` : node.reason,
    ".details": details.filter(Boolean).join(" · "),
    ".move": move ? `${clock(move.at)} ${told(move)}` : "",
  };
  for (const [selector, text] of Object.entries(texts)) say($(selector, card), text);
  $(".weight", card).style.setProperty("--share", `${node.weight ?? 0}%`);
  $(".kv", card).style.setProperty("--share", `${kv ?? 0}%`);
  $(".charts", card).setAttribute("aria-label", `The last hour of ${node.name}: weight, KV cache, running, waiting`);
}

/** Hide the cards that lack one of the words that the user looks for. */
export function find() {
  const words = $("#find input").value.toLowerCase().split(/\s+/);
  let count = 0;
  for (const card of cards.values()) {
    const texts = [$("header", card).textContent, $(".reason", card).textContent, card.dataset.cause];
    const text = texts.join(" ").toLowerCase();
    card.hidden = !words.every((word) => text.includes(word));
    count += card.hidden ? 0 : 1;
  }
  say($("#find output"), words.join("") ? `${count} of ${cards.size} nodes` : "");
}
