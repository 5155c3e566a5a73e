// Turns numbers and times into text. Pure: it knows neither the DOM, nor the network, nor what was read.

export const HOUR = 3600; // seconds

const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });

/** Return the seconds since 1970 of an RFC 3339 time; NaN for anything else. */
export const seconds = (text) => Date.parse(text) / 1000;

/** Return a time of the day, with the date if that is not today. `at` is in seconds. */
export function clock(at) {
  const moment = new Date(at * 1000);
  const today = moment.toDateString() === new Date().toDateString();
  return today ? CLOCK.format(moment) : `${DAY.format(moment)} ${CLOCK.format(moment)}`;
}

/** Return hour and minute, for an axis. */
export const hourAndMinute = (at) => CLOCK.format(new Date(at * 1000)).slice(0, 5);

/** Return the time of the day of an RFC 3339 time, or "never". */
export const whenever = (text) => (text ? clock(seconds(text)) : "never");

/** Return a number of seconds as "8 s", "3 min", "2 h 5 min" or "3 d". */
export function duration(span) {
  const all = Math.max(0, Math.round(span));
  if (all < 120) return `${all} s`;
  if (all < 2 * HOUR) return `${Math.floor(all / 60)} min`;
  if (all < 48 * HOUR) return `${Math.floor(all / HOUR)} h ${Math.floor((all % HOUR) / 60)} min`;
  return `${Math.floor(all / 24 / HOUR)} d`;
}

/** Return an outcome in words: "rolled back". */
export const worded = (outcome) => String(outcome).replaceAll("_", " ");

/** Return a generation as short as log lines have it. */
export const shortened = (generation) => (generation ? String(generation).slice(0, 12) : "–");

/** Return a number with its unit, or a dash if it is not known. */
export const shown = (value, unit = "") => (value === null || value === undefined ? "–" : `${value}${unit}`);

/** Return a ratio in percent, or null if it is not known. */
export const percent = (ratio) => (ratio === null || ratio === undefined ? null : Math.round(100 * ratio));

/** Return a round number for the top of an axis: at least the value, at least 4. */
export function niceCeiling(value) {
  const step = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return Math.max(4, [1, 2, 4, 6, 8, 10].map((n) => n * step).find((n) => n >= value));
}
