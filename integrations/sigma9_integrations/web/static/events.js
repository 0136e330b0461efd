// Events: first what the journal has, then the WebSocket from the same number on.

import { $, TIME, line, number, quantity, wallTime, written } from "./draw.js";
import { showWatchlist } from "./panels.js";
import { call } from "./rest.js";
import { state, tell } from "./state.js";
import { freshness, heard, showStatus } from "./status.js";

const TYPES = ["trade_event", "watchlist_update", "status_update", "log"];
export const BACKLOG = 100; // events of the journal that are shown to begin with
const MIRROR = "sigma9.console"; // this notifier logs every event once more

// What the journal has since the last event that was shown, or its newest ones to begin with. The WebSocket goes on
// after the same number, so that nothing is missing between the two, and nothing comes twice.
async function backlog(gone) {
  const status = await call("GET", "/api/status");
  if (state.journal !== null && status.journal_id !== state.journal) {
    line($("events"), "", "The server has a new journal: event numbers begin anew.", "warning");
    state.seq = state.now = null;
  }
  state.journal = status.journal_id;
  const latest = Math.max(0, status.seq - BACKLOG);
  if (state.seq === null || state.seq < latest) {
    if (state.seq !== null) line($("events"), "", `${latest - state.seq} events are left out here: the journal has them.`, "muted");
    state.seq = latest;
  }
  for (let next = state.seq; next !== null && !gone();) {
    let page;
    try {
      page = await call("GET", `/api/events?after=${next}&limit=${BACKLOG}`);
    } catch (error) {
      if (error.status !== 409 || !(error.details.first - 1 > next)) throw error;
      next = state.seq = error.details.first - 1; // older ones are no longer kept
      continue;
    }
    page.events.forEach(happened);
    next = page.next;
  }
}

// Shows a durable event, once; gives false where one before it is missing.
function happened(event) {
  if (event.seq <= state.seq) return true;
  if (event.seq !== state.seq + 1) return false;
  state.seq = event.seq;
  heard(event.ts);
  const [text, className] = sentence(event.type, event.data ?? {});
  line($("events"), written(event.ts, state.zone, { month: "short", day: "numeric", ...TIME }), text, className, event.type);
  return true;
}

function sentence(type, data) {
  if (type === "trade_event") return [told(data), ["risk_rejected", "rejected", "unknown", "busted", "unchanged"].includes(data.event) ? "warning" : "trade"];
  if (type === "watchlist_update") {
    const changes = [...(data.added ?? []).map((symbol) => `+${symbol}`), ...(data.removed ?? []).map((symbol) => `−${symbol}`)];
    return [`watchlist (${data.reason}): ${changes.join(" ") || "unchanged"}`, "status"];
  }
  const parts = (data.changed ?? []).map((part) => `${part.replaceAll("_", " ")} ${stateOf(data.status ?? {}, part)}`);
  return [`${parts.join(", ")}${data.reason ? ` (${data.reason})` : ""}`, data.changed?.includes("kill_switch") && data.status?.kill_switch?.state === "ON" ? "warning" : "status"];
}

function stateOf(status, part) {
  const value = status[part];
  if (part === "kill_switch") return value?.state === "ON" ? `on (${value.phase})` : value?.scopes?.length ? "on in part" : "off";
  if (part === "market") return value?.open ? "open" : "closed";
  return typeof value === "string" ? value : value?.state ?? "changed";
}

function told(data) {
  const price = data.last_price ?? data.average_price ?? data.limit_price ?? data.stop_price;
  const filled = ["filled", "partially_filled"].includes(data.event);
  const amount = quantity(filled ? data.last_quantity ?? data.filled_quantity : data.quantity);
  const why = [data.rule, data.reason].filter(Boolean).join(": ");
  return [String(data.event).replaceAll("_", " "), data.side, amount, data.symbol, typeof price === "number" ? `at ${number(price)}` : "",
    data.recovered ? "(read back)" : "", why ? `– ${why}` : ""].filter(Boolean).join(" ");
}

export async function connect() {
  clearTimeout(state.retry);
  const attempt = state.attempt = {};
  const gone = () => state.attempt !== attempt || !state.token;
  try {
    await backlog(gone);
  } catch (error) {
    if (gone()) return;
    if (error.status === 401) { tell("out", "The token is no longer valid."); return; }
    if (error.status === 409) state.seq = null; // the number is none of this journal's: begin anew
    again();
    return;
  }
  if (gone()) return;
  const query = new URLSearchParams({ types: TYPES.join(","), level: $("level").value, batch: "true", after: state.seq });
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const secret = encodeURIComponent(state.token).replace(/[()]/g, (sign) => `%${sign.charCodeAt(0).toString(16)}`);
  const socket = new WebSocket(`${scheme}://${location.host}/ws/feed?${query}`, [`sigma9.token.${secret}`]);
  state.socket = socket;
  socket.addEventListener("message", (message) => {
    const found = JSON.parse(message.data);
    (Array.isArray(found) ? found : [found]).forEach((event) => { if (state.socket === socket) take(event); });
  });
  socket.addEventListener("close", () => {
    if (state.socket !== socket) return;
    state.socket = null;
    again();
  });
}

function again() {
  state.live = false;
  state.tries += 1;
  freshness();
  tell("moved"); // tells a token that is no longer valid from a server that is away
  clearTimeout(state.retry);
  state.retry = setTimeout(() => state.token && connect(), Math.min(15000, 500 * 2 ** Math.min(state.tries, 5)) * (0.75 + Math.random() / 2));
}

function take(event) {
  const data = event.data ?? {};
  if (event.type === "log") {
    if (data.logger === MIRROR && !data.dropped) return; // it stands among the events already
    const lost = data.dropped ? `(${data.dropped} lines were lost) ` : "";
    line($("log"), wallTime(event.ts), `${lost}${String(data.logger ?? "").replace("sigma9.", "")}: ${data.message}`, data.level);
    return;
  }
  if (event.seq !== null && !happened(event)) { state.socket?.close(); return; } // it comes again with what is missing
  heard(event.ts);
  if (data.reason === "snapshot" && event.seq === null) {
    state.live = true;
    state.tries = 0;
    freshness();
    if (event.type === "status_update") tell("moved");
  }
  if (!state.live) return; // older than what is shown
  if (event.type === "status_update" && Object.keys(data.status ?? {}).length) showStatus(data.status);
  if (event.type === "watchlist_update") showWatchlist({ items: data.items }, "");
  if (event.type === "trade_event") soon();
}

let waiting = null;
function soon() {
  waiting ??= setTimeout(() => { waiting = null; tell("moved"); }, 200);
}

export function listen() { // to another level of the log
  if (state.socket?.readyState === WebSocket.OPEN) state.socket.send(JSON.stringify({ action: "subscribe", types: TYPES, level: $("level").value }));
}

export function hangUp() {
  clearTimeout(state.retry);
  const socket = state.socket;
  state.socket = state.attempt = null;
  socket?.close();
}
