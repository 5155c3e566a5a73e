/* global uPlot */
// The charts: the time line of the events, and two charts for each node in view. All share one time axis and one
// cursor. This module does not know the network. No text of nodes or of the script is drawn on a canvas.

import { $, say } from "./dom.js";
import { toldInFull } from "./events.js";
import { HOUR, clock, hourAndMinute, niceCeiling, percent, shown } from "./format.js";
import { highestCounts } from "./history.js";
import { LANES, colours, drawEventsOnLanes, drawMarks, readColours, shade } from "./marks.js";
import { now, page } from "./state.js";

const LANE_NAMES = ["Nodes", "Faults", "Deferred", "Changes"]; // from below
const FONT = "11px system-ui, sans-serif";
const NEAR = 8; // pixels between the cursor and an event that it tells

export const plots = new Map(); // every uPlot that is drawn, by its element
let highest = new Map(); // the highest count of requests, by pool

/** Return the time at which charts begin: at the start of the history, between ten minutes and an hour ago. */
const shownFrom = () => Math.max(now() - HOUR, Math.min(page.history.times[0] ?? 0, now() - 600));

/** Return the times of charts; without a history, the ends of the axis. */
const timesShown = () => (page.history.times.length ? page.history.times : [now() - HOUR, now()]);

/** Return the settings that all charts have in common, and the axis of the values. */
function options(element, { labelled, y, axis, lines, hooks }) {
  const common = { stroke: () => colours.muted, font: FONT, grid: { stroke: () => colours.grid, width: 1 } };
  const time = {
    ...common,
    size: labelled ? 22 : 4,
    gap: 5,
    space: 64,
    ticks: { show: false },
    values: (_, times) => times.map((at) => (labelled ? hourAndMinute(at) : "")),
  };
  const values = { ...common, scale: "y", labelFont: FONT, size: 42, gap: 4, labelSize: 16, labelGap: 0 };
  return {
    width: element.clientWidth,
    height: element.clientHeight,
    padding: [7, 10, 0, 0],
    legend: { show: false },
    cursor: { sync: { key: "hour" }, y: false, drag: { x: false, y: false } },
    scales: { x: { range: () => [shownFrom(), now()] }, y },
    axes: [time, { ...values, ticks: { show: false }, ...axis }],
    series: [{}, ...lines],
    hooks,
  };
}

/** Return a line of a chart. */
const line = (name, more) => ({ scale: "y", stroke: () => colours[name], points: { show: false }, ...more });

/** Return a line with the area below it. */
const filled = (name, more) => line(name, { width: 2, fill: () => colours[`${name}-fill`], ...more });

/** Return a dashed line, for people who cannot tell the two lines apart by colour. */
const dashed = (name) => line(name, { width: 1.5, dash: [5, 3] });

/** Draw a chart, or update its data. */
function plotInto(element, data, settings) {
  const known = plots.get(element);
  if (known) known.setData(data);
  else if (element.clientWidth && page.historyWasRead) {
    plots.set(element, new uPlot(options(element, settings), data, element));
    sizes.observe(element);
  }
}

/** Draw the time line, and the charts of the cards in view. */
export function drawCharts() {
  highest = highestCounts(page.history);
  drawTimeline();
  for (const card of document.querySelectorAll("article.in-view")) drawNodeCharts(card);
}

/** Draw the time line of the events. */
function drawTimeline() {
  const element = $("#timeline");
  const readout = $(".readout", element.parentNode);
  const times = timesShown();
  plotInto(element, [times, times.map(() => null)], {
    labelled: true,
    y: { range: [0, LANE_NAMES.length] },
    axis: { size: 58, splits: () => LANE_NAMES.map((_, lane) => lane + 0.5), values: () => LANE_NAMES },
    lines: [{ scale: "y", points: { show: false } }],
    hooks: { draw: [drawEventsOnLanes], setCursor: [(plot) => tellEvents(plot, readout)] },
  });
}

/** Show the event nearest to the cursor. */
function tellEvents(plot, readout) {
  const { left } = plot.cursor;
  if (left < 0) return say(readout, "");
  const distance = (event) => Math.abs(plot.valToPos(event.at, "x") - left);
  const near = [...page.history.events.values()].filter((event) => event.kind in LANES && distance(event) < NEAR);
  const [nearest] = near.sort((a, b) => distance(a) - distance(b));
  const more = near.length > 1 ? ` (and ${near.length - 1} more)` : "";
  return say(
    readout,
    nearest ? `${clock(nearest.at)} ${toldInFull(nearest)}${more}` : clock(plot.posToVal(left, "x")),
  );
}

/** Draw the two charts of a node. The charts of a pool have one scale for requests, so that they can be compared. */
function drawNodeCharts(card) {
  const { key } = card.dataset;
  const [pool] = key.split("\n");
  const times = timesShown();
  const series = page.history.nodes.get(key);
  const column = (name) => series?.[name] ?? times.map(() => null);
  const most = () => niceCeiling(highest.get(pool) ?? 0);
  const hooks = {
    drawClear: [(plot) => shade(plot, key)],
    draw: [drawMarks],
    setCursor: [(plot) => tellNode(plot, key, $(".readout", card))],
  };
  plotInto($(".shares", card), [times, column("weight"), column("kv_cache_usage").map(percent)], {
    labelled: false,
    y: { range: [0, 103] }, // room for a line at 100
    axis: { label: "weight, %", splits: () => [0, 50, 100] },
    lines: [filled("weight", { paths: uPlot.paths.stepped({ align: 1 }) }), dashed("kv")],
    hooks,
  });
  plotInto($(".counts", card), [times, column("running"), column("waiting")], {
    labelled: true,
    y: { range: () => [0, most()] },
    axis: { label: "requests", splits: () => [0, most() / 2, most()] },
    lines: [filled("running"), dashed("waiting")],
    hooks,
  });
}

/** Show a node's numbers at the cursor. */
function tellNode(plot, key, readout) {
  const place = plot.cursor.left < 0 ? null : plot.cursor.idx;
  const series = page.history.nodes.get(key);
  if (!series || (series.state[place] ?? null) === null) return say(readout, "");
  const words = [
    clock(page.history.times[place]),
    `weight ${shown(series.weight[place])}`,
    `KV ${shown(percent(series.kv_cache_usage[place]), " %")}`,
    `running ${shown(series.running[place])}`,
    `waiting ${shown(series.waiting[place])}`,
    series.state[place],
  ];
  return say(readout, words.join(" · "));
}

// Hundreds of nodes have hundreds of cards, but charts only where they are in view.
const inView = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      target.classList.toggle("in-view", isIntersecting);
      if (isIntersecting) drawNodeCharts(target);
      else removeCharts(target);
    }
  },
  { rootMargin: "300px" },
);

const sizes = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const width = target.clientWidth;
    const plot = plots.get(target);
    if (plot && width && plot.width !== width) plot.setSize({ width, height: target.clientHeight });
  }
});

/** Let a card have charts while it is in view. */
export const watch = (card) => inView.observe(card);

/** Stop watching a card, and remove its charts. */
export function unwatch(card) {
  inView.unobserve(card);
  removeCharts(card);
}

/** Read the colours of the style sheet, and draw with them. */
export function recolour() {
  readColours();
  for (const plot of plots.values()) plot.redraw(false);
}

/** Remove the charts of a card. */
function removeCharts(card) {
  for (const element of card.querySelectorAll(".chart")) {
    plots.get(element)?.destroy();
    plots.delete(element);
    sizes.unobserve(element);
  }
}
