// The few things that all modules do with the document. What nodes and the script say is hostile input: it gets into
// the page as textContent only. It knows nothing of what is shown.

/** Return the first element that a selector finds. */
export const $ = (selector, within = document) => within.querySelector(selector);

/** Set a text, if it is another: screen readers read again what is set. */
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

/** Return the element in a template, as new. */
export const fromTemplate = (selector) => $(selector).content.firstElementChild.cloneNode(true);

/** Show a notice: a bold headline and a sentence; hide it without a code. */
export function notice(element, code, headline, sentence) {
  element.hidden = code === null;
  element.replaceChildren(...(code === null ? [] : [made("b", headline), " ", sentence ?? ""]));
}
