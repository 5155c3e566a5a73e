// Begins: hands the room that reads (poll.js) the rooms that show (view.js, nodes.js, charts.js), and listens to the user.
//
// format, status, events, history: pure, tested with node. state: what the page knows. dom, marks: help to show.

import { plots, recolour } from "./charts.js";
import { $, say } from "./dom.js";
import { find } from "./nodes.js";
import { start, wake } from "./poll.js";
import { page } from "./state.js";
import { draw, drawAges, drawEvents, drawProblems } from "./view.js";

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
document.addEventListener("visibilitychange", () => document.hidden || wake());
$("#find input").addEventListener("input", find);
$("#all").addEventListener("toggle", drawEvents);
setInterval(() => {
  drawAges();
  drawProblems();
}, 1000);

window.statusPage = { page, plots }; // for tests
say($("#host"), location.host);
recolour();
start({ draw, drawProblems, isHidden: () => document.hidden });
