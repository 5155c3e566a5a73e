// What charts have besides their lines: the shading of times when a node was not up, marks of changes and faults, and
// the events on the lanes of the time line. It draws on canvases, and knows nothing of the rest of the document.

import { spansNotUp } from "./history.js";
import { interval, page } from "./state.js";

export const LANES = { node: 0.5, fault: 1.5, gap: 1.5, wait: 2.5, change: 3.5 }; // by kind of event
const SPANS = { down: "bad-span", unknown: "warn-span", drained: "out-span" }; // by state
const NAMES = "muted grid weight weight-fill kv running running-fill waiting bad warn out bad-span warn-span out-span";

export const colours = {}; // by their names in the style sheet

/** Read the colours of the style sheet: dark ones differ from light ones. */
export function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of NAMES.split(" ")) colours[name] = style.getPropertyValue(`--${name}`);
}

/** Shade the times when a node was not up, behind the lines. */
export function shade(plot, key) {
  const series = page.history.nodes.get(key);
  if (!series) return;
  const { ctx, bbox } = plot;
  for (const span of spansNotUp(page.history.times, series.state, interval())) {
    const from = Math.max(plot.valToPos(span.from, "x", true), bbox.left);
    const to = Math.min(plot.valToPos(span.to, "x", true), bbox.left + bbox.width);
    ctx.fillStyle = colours[SPANS[span.state]] ?? colours.grid;
    if (to > from) ctx.fillRect(from, bbox.top, to - from, bbox.height);
  }
}

/** Draw a short line for each change, and a dashed one from top to bottom for each fault. */
export function drawMarks(plot) {
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
export function drawEventsOnLanes(plot) {
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

// By kind of event: they draw around a point, r from it at most. A wait is as wide as a tick.
const SHAPES = {
  change: (ctx, x, y, r) => fill(ctx, "weight", [[x, y - r], [x + r, y + r * 0.8], [x - r, y + r * 0.8]]),
  node: (ctx, x, y, r) => fill(ctx, "out", [[x, y - r], [x + r, y], [x, y + r], [x - r, y]]),
  wait: (ctx, x, y, r, plot) => {
    const width = plot.valToPos(plot.scales.x.min + interval(), "x", true) - plot.bbox.left;
    fill(ctx, "warn", [[x, y - r / 2], [x + width, y - r / 2], [x + width, y + r / 2], [x, y + r / 2]]);
  },
  fault: cross,
  gap: cross,
};

/** Fill the area between corners. */
function fill(ctx, colour, corners) {
  ctx.fillStyle = colours[colour];
  ctx.beginPath();
  for (const [x, y] of corners) ctx.lineTo(x, y);
  ctx.fill();
}

/** Draw a cross. */
function cross(ctx, x, y, r) {
  ctx.strokeStyle = colours.bad;
  ctx.beginPath();
  for (const side of [-0.8, 0.8]) {
    ctx.moveTo(x - r * 0.8, y - r * side);
    ctx.lineTo(x + r * 0.8, y + r * side);
  }
  ctx.stroke();
}
