// Starts the page, and connects what reads (poll.js) with what shows (view.js, nodes.js, charts.js) and with the user.
//
// The modules, lowest first; each imports only from those before it:
//   format, status, fleet, events, history: pure        state: what the page knows        poll: asks nginx
//   dom, marks, charts, nodes, view: the document

import { plots, recolour } from "./charts.js";
import { $, say } from "./dom.js";
import { drawPools, toggleAll } from "./nodes.js";
import { start, wake } from "./poll.js";
import { page } from "./state.js";
import { draw, drawAges, drawEvents, drawProblems } from "./view.js";

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
document.addEventListener("visibilitychange", () => document.hidden || wake());
$("#find input").addEventListener("input", () => page.status && drawPools());
$("#rest button").addEventListener("click", toggleAll);
$("#all").addEventListener("toggle", drawEvents);
setInterval(() => {
  drawAges();
  drawProblems();
}, 1000);

window.statusPage = { page, plots }; // for tests
say($("#host"), location.host);
recolour();
start({ draw, drawProblems, isHidden: () => document.hidden });
