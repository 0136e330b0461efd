// Writing to the page: text, numbers, times, rows and lines. Everything that comes from outside is written with
// textContent, never as markup.

import { state } from "./state.js";

const LINES = 300;
export const $ = (id) => document.getElementById(id);
export const WALL_ZONE = Intl.DateTimeFormat().resolvedOptions().timeZone ?? "local time";

export function node(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  if (className) made.className = className;
  return made;
}

export function put(target, text, className) {
  const shown = text === undefined || text === null || text === "" ? "–" : String(text);
  if (target.textContent !== shown) target.textContent = shown;
  if (className !== undefined && target.className !== className) target.className = className;
}

export function number(value, digits = 2) {
  if (typeof value !== "number") return null;
  return value.toLocaleString(undefined, { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export function quantity(value, digits = 6) {
  return typeof value === "number" ? value.toLocaleString(undefined, { maximumFractionDigits: digits }) : null;
}

export function money(value) {
  if (typeof value !== "number") return null;
  try {
    return value.toLocaleString(undefined, { style: "currency", currency: state.currency });
  } catch {
    return number(value);
  }
}

export function signed(value) {
  const text = money(value);
  return text !== null && value > 0 ? `+${text}` : text;
}

export function tone(value) {
  return typeof value !== "number" || value === 0 ? "" : value > 0 ? "good" : "bad";
}

// Times of the market are shown in its zone, wall times in the reader's.
const formats = new Map();
export function written(time, zone, options) {
  const found = time instanceof Date ? time : new Date(time ?? NaN);
  if (Number.isNaN(found.getTime())) return null;
  const key = JSON.stringify([zone, options]);
  if (!formats.has(key)) {
    let format;
    try { format = new Intl.DateTimeFormat(undefined, { ...options, timeZone: zone }); } catch { format = new Intl.DateTimeFormat(undefined, { ...options, timeZone: "UTC" }); }
    formats.set(key, format);
  }
  return formats.get(key).format(found);
}

export const TIME = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };
export const DAY = { weekday: "short", month: "short", day: "numeric" };
export const marketMoment = (time, more) => written(time, state.zone, { ...DAY, hour: "2-digit", minute: "2-digit", hourCycle: "h23", ...more });
export const wallTime = (time) => written(time, undefined, TIME);

export function span(seconds) {
  if (typeof seconds !== "number") return null;
  const [days, hours, minutes] = [seconds / 86400, (seconds / 3600) % 24, (seconds / 60) % 60].map(Math.floor);
  return days ? `${days} d ${hours} h` : hours ? `${hours} h ${minutes} min` : `${minutes} min`;
}

export function pairs(list, rows) {
  while (list.children.length > rows.length) list.lastChild.remove();
  rows.forEach(([name, text, className], index) => {
    let pair = list.children[index];
    if (!pair) {
      pair = node("div");
      pair.append(node("dt"), node("dd"));
      list.append(pair);
    }
    put(pair.firstChild, name);
    put(pair.lastChild, text, className ?? "");
  });
}

// Rows are kept by key, so that a button does not vanish under a finger while numbers move. A cell is
// [text, class] or, for a meter, [null, class, {value, max, label}].
export function rows(body, items, key, cells, action) {
  const known = new Map(Array.from(body.children, (row) => [row.dataset.key, row]));
  items.forEach((item, index) => {
    const name = String(key(item));
    let row = known.get(name);
    if (row) {
      known.delete(name);
    } else {
      row = node("tr");
      row.dataset.key = name;
      cells(item).forEach(([, className], column) => row.append(node(column ? "td" : "th", null, className)));
      row.firstChild.scope = "row";
      if (action) row.append(actionCell(row, item, action));
    }
    row.item = item;
    cells(item).forEach(([text, className, meter], column) => {
      if (meter === undefined) put(row.children[column], text, className ?? "");
      else gauge(row.children[column], meter);
    });
    if (action?.when) row.lastChild.firstChild.hidden = !action.when(item);
    if (body.children[index] !== row) body.insertBefore(row, body.children[index] ?? null);
  });
  known.forEach((row) => row.remove());
}

function actionCell(row, item, action) {
  const cell = node("td");
  const button = node("button", action.text);
  button.type = "button";
  button.setAttribute("aria-label", action.label(item));
  button.addEventListener("click", () => action.run(row.item));
  cell.append(button);
  return cell;
}

function gauge(cell, meter) {
  if (!meter) { cell.replaceChildren(); return; }
  const shown = cell.firstChild ?? cell.appendChild(node("meter"));
  Object.assign(shown, { min: 0, max: meter.max, low: meter.max * 0.75, high: meter.max, optimum: 0, value: Math.abs(meter.value) });
  shown.setAttribute("aria-label", meter.label);
}

export function toast(text, className) {
  const line = node("p", text, className);
  $("toast").replaceChildren(line); // the newest alone: two of them could contradict each other
  setTimeout(() => line.remove(), 6000);
}

export function note(id, text) {
  const target = $(id);
  if (target.textContent !== text) target.textContent = text;
}

// Adds a line to a list, the newest on top; who reads further down stays where they are.
export function line(list, time, text, className, kind) {
  const before = list.scrollHeight;
  const made = node("li", null, className);
  if (kind) made.dataset.kind = kind;
  made.append(node("time", time), node("span", text));
  list.prepend(made);
  while (list.children.length > LINES) list.lastChild.remove();
  if (list.scrollTop > 0) list.scrollTop += list.scrollHeight - before;
}
