// Islands of data: JSON, gzip, base64. Each is unpacked when it is first wanted; of the last ones the values are kept.
const KEPT = 12;
const kept = new Map();

async function unpack(name) {
  const text = atob(document.getElementById("island-" + name).textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function island(name) {
  const found = kept.get(name) ?? unpack(name);
  kept.delete(name);
  kept.set(name, found);
  if (kept.size > KEPT) kept.delete(kept.keys().next().value);
  return found;
}

// Text as it may be shown: control characters (terminal sequences, bidirectional overrides) become escapes.
function shown(text) {
  const escape = (unit) => "\\u" + unit.charCodeAt(0).toString(16).padStart(4, "0");
  return String(text).replace(/[^\P{C}\n\t]/gu, (c) => c.split("").map(escape).join(""));
}

// An element. Text becomes text nodes and is never read as HTML.
function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === "") continue;
    element.append(child instanceof Node ? child : shown(child));
  }
  return element;
}

function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  // four digits are of a probability
  return digits === 4 && value < 0.00005 ? "<.0001" : value.toFixed(digits);
}
