// Helpers for the document. Texts of nodes and of the script are hostile input: they get into the page as textContent
// only. This module does not know what is shown.

/** Return the first element that a selector finds. */
export const $ = (selector, within = document) => within.querySelector(selector);

/** Set a text if it has changed: screen readers read a text again when it is set. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Make an element with a text. */
export function made(tag, text, className = "") {
  const element = document.createElement(tag);
  element.textContent = text;
  element.className = className;
  return element;
}

/** Return a new copy of the element in a template. */
export const fromTemplate = (selector) => $(selector).content.firstElementChild.cloneNode(true);

/** Show a notice: a bold headline and a sentence; hide it without a code. */
export function notice(element, code, headline, sentence) {
  element.hidden = code === null;
  element.replaceChildren(...(code === null ? [] : [made("b", headline), " ", sentence ?? ""]));
}
