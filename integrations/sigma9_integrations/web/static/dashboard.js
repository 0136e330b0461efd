// The dashboard: state over REST, events over the WebSocket. Everything that comes from outside is written with
// textContent, never as markup. The token lives in sessionStorage and goes out in a header or as a sub-protocol.
"use strict";

const TOKEN = "sigma9.token";
const TYPES = ["trade_event", "watchlist_update", "status_update", "log"];
const REFRESH_MS = 3000;
const LOG_LINES = 300;
const $ = (id) => document.getElementById(id);

const state = {
  token: sessionStorage.getItem(TOKEN),
  socket: null,
  live: false,          // the WebSocket is open and has given its snapshots
  fresh: false,         // the last reading over REST succeeded
  lost: null,           // since when what is shown is old
  seq: null,            // the newest durable event that was seen
  journal: null,
  tries: 0,
  retry: null,
  timer: null,
  reading: false,
  again: false,
  currency: "USD",
  status: null,
};

// --- small helpers -----------------------------------------------------------

function node(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function put(target, text, className) {
  const shown = text === undefined || text === null || text === "" ? "–" : String(text);
  if (target.textContent !== shown) target.textContent = shown;
  if (className !== undefined && target.className !== className) target.className = className;
}

function number(value, digits = 2) {
  if (typeof value !== "number") return null;
  return value.toLocaleString(undefined, { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function quantity(value) {
  return typeof value === "number" ? value.toLocaleString(undefined, { maximumFractionDigits: 6 }) : null;
}

function money(value) {
  if (typeof value !== "number") return null;
  try {
    return value.toLocaleString(undefined, { style: "currency", currency: state.currency });
  } catch {
    return number(value);
  }
}

function signed(value) {
  const text = money(value);
  return text !== null && value > 0 ? `+${text}` : text;
}

function tone(value) {
  return typeof value !== "number" || value === 0 ? "" : value > 0 ? "good" : "bad";
}

function clock(time) {
  const moment = time instanceof Date ? time : new Date(time);
  return Number.isNaN(moment.getTime()) ? "–" : moment.toLocaleTimeString();
}

function moment(time) {
  if (!time) return null;
  const found = new Date(time);
  return Number.isNaN(found.getTime()) ? null : found.toLocaleString([], { dateStyle: "short", timeStyle: "short" });
}

function span(seconds) {
  if (typeof seconds !== "number") return null;
  const [days, hours, minutes] = [seconds / 86400, (seconds / 3600) % 24, (seconds / 60) % 60].map(Math.floor);
  return days ? `${days} d ${hours} h` : hours ? `${hours} h ${minutes} min` : `${minutes} min`;
}

function freshId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // randomUUID is missing on plain http
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function pairs(list, rows) {
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

// Rows are kept by key, so that a button does not vanish under a finger while numbers move.
function rows(body, items, key, cells, action) {
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
      if (action) {
        const cell = node("td");
        const button = node("button", action.text);
        button.type = "button";
        button.setAttribute("aria-label", action.label(item));
        button.addEventListener("click", () => action.run(row.item));
        cell.append(button);
        row.append(cell);
      }
    }
    row.item = item;
    cells(item).forEach(([text, className], column) => put(row.children[column], text, className ?? ""));
    if (body.children[index] !== row) body.insertBefore(row, body.children[index] ?? null);
  });
  known.forEach((row) => row.remove());
}

function toast(text, className) {
  const line = node("p", text, className);
  $("toast").append(line);
  setTimeout(() => line.remove(), 6000);
}

// --- REST --------------------------------------------------------------------

class Refused extends Error {
  constructor(status, error) {
    super(error?.message ?? `HTTP ${status}`);
    this.status = status;
  }
}

async function call(method, path, body, id) {
  const headers = { Authorization: `Bearer ${state.token}` };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (id) headers["Idempotency-Key"] = id;
  const response = await fetch(path, {
    method, headers, cache: "no-store", credentials: "omit", signal: AbortSignal.timeout(10000),
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  let answer = null;
  try { answer = await response.json(); } catch { /* a proxy's page */ }
  if (!response.ok) throw new Refused(response.status, answer?.error);
  return answer;
}

async function command(method, path, body, done) {
  try {
    await call(method, path, body ?? {}, freshId());
    toast(done, "good");
  } catch (error) {
    if (error.status === 401) return logout("The token is no longer valid.");
    toast(error instanceof Refused ? error.message : `No answer: whether it was carried out is not known (${error.message}).`, "bad");
  }
  read();
}

async function read() {
  if (state.reading) { state.again = true; return; }
  state.reading = true;
  try {
    do {
      state.again = false;
      const names = ["status", "account", "positions", "orders", "watchlist"];
      const results = await Promise.allSettled(names.map((name) => call("GET", `/api/${name}`)));
      if (results.some((result) => result.reason?.status === 401)) return logout("The token is not valid.");
      // An answer that refuses is an answer: the server is there. A missing one is not.
      state.fresh = results.every((result) => result.status === "fulfilled" || result.reason instanceof Refused);
      results.forEach((result, index) => show(names[index], result.value, result.reason));
    } while (state.again);
  } finally {
    state.reading = false;
    freshness();
  }
}

function show(name, body, reason) {
  const missing = reason instanceof Refused ? reason.message : "";
  if (name === "status") { if (body) showStatus(body); return; }
  if (!body && !missing) return; // no answer: what is shown stays, marked as old
  ({ account: showAccount, positions: showPositions, orders: showOrders, watchlist: showWatchlist })[name](body ?? {}, missing);
}

// --- showing -----------------------------------------------------------------

function showStatus(status) {
  state.status = status;
  const kill = status.kill_switch ?? {};
  const engine = status.engine ?? "unknown";
  put($("node"), status.node ? `Sigma9 · ${status.node}` : "Sigma9");
  document.title = `${kill.latched ? "KILLED" : engine} · Sigma9`;
  put($("engine"), `engine ${engine}`, `badge ${{ running: "good", paused: "warn", killed: "bad" }[engine] ?? ""}`);
  const market = status.market;
  $("market").hidden = !market || typeof market.open !== "boolean";
  if (!$("market").hidden) put($("market"), market.open ? "market open" : "market closed", `badge ${market.open ? "good" : ""}`);

  const broker = status.broker ?? {};
  const down = ["socket", "link", "data"].filter((part) => broker[part] !== "up");
  const until = market?.open ? ["Closes", moment(market.next_close)] : ["Opens", moment(market?.next_open)];
  pairs($("parts"), [
    ["Broker", `${broker.name ?? "–"}: ${down.length ? `${down.join(", ")} down` : "up"}`, down.length ? "bad" : "good"],
    ["Feed", `${status.feed?.name ?? "–"}: ${status.feed?.state ?? "–"}`],
    ["MQTT", status.mqtt, { connected: "good", disconnected: "bad" }[status.mqtt] ?? ""],
    ["Clock", status.clock],
    until,
    ["Uptime", span(status.uptime)],
  ]);
  put($("version"), `Sigma9 ${status.version ?? ""}`);

  $("killed").hidden = !kill.latched;
  if (kill.latched) {
    const pending = Array.isArray(kill.pending) && kill.pending.length ? `waiting for ${kill.pending.join(", ")}` : null;
    const facts = [kill.phase && `Phase: ${kill.phase}`, kill.detail?.replaceAll?.("_", " "), pending, kill.reason && `reason: ${kill.reason}`,
      kill.source && `by ${kill.source}`, kill.at && `at ${moment(kill.at)}`, kill.error && `error: ${kill.error}`];
    put($("killed-text"), facts.filter(Boolean).join(" · "));
  }
  const paused = engine === "paused";
  put($("pause"), paused ? "Resume" : "Pause");
  $("start").disabled = Boolean(kill.latched) || ["running", "starting", "paused"].includes(engine);
  $("pause").disabled = Boolean(kill.latched) || !["running", "paused"].includes(engine);
  $("stop").disabled = ["stopped", "stopping", "killed"].includes(engine);
}

function showAccount(account, missing) {
  state.currency = account.currency ?? state.currency;
  put($("equity"), money(account.equity));
  put($("day-pnl"), typeof account.day_pnl === "number" ? `${signed(account.day_pnl)} today` : " ", tone(account.day_pnl));
  pairs($("account"), [
    ["Cash", money(account.cash)],
    ["Buying power", money(account.buying_power)],
    ["Open P&L", signed(account.unrealized_pnl), tone(account.unrealized_pnl)],
    ["Realized P&L", signed(account.realized_pnl), tone(account.realized_pnl)],
    ["Account", account.account],
  ]);
  $("mode").hidden = !account.mode;
  put($("mode"), account.mode === "live" ? "LIVE ACCOUNT" : account.mode, `badge ${account.mode === "live" ? "bad" : ""}`);
  note("account-note", missing);
}

function showPositions(body, missing) {
  const positions = body.positions ?? [];
  put($("positions-count"), missing ? "?" : positions.length, "count");
  rows($("positions"), positions, (each) => each.symbol, (each) => [
    [each.symbol],
    [quantity(each.quantity), "n"],
    [number(each.average_cost), "n"],
    [number(each.last), "n"],
    [money(each.market_value), "n"],
    [signed(each.unrealized_pnl), `n ${tone(each.unrealized_pnl)}`],
    [each.foreign ? "not ours" : each.strategy],
    [each.protected ? "at broker" : each.foreign ? "–" : "none", each.protected || each.foreign ? "" : "warn"],
  ], {
    text: "Close",
    label: (each) => `Close the position in ${each.symbol}`,
    run: (each) => confirmThen({
      title: `Close ${each.symbol}?`, text: `An order for ${quantity(Math.abs(each.quantity))} ${each.symbol} is sent at the market.`, yes: "Close position",
    }, () => command("POST", `/api/positions/${encodeURIComponent(each.symbol)}/close`, {}, `${each.symbol}: closing`)),
  });
  note("positions-note", missing || (positions.length ? "" : "No open positions."));
}

function showOrders(body, missing) {
  const orders = body.orders ?? [];
  put($("orders-count"), missing ? "?" : orders.length, "count");
  rows($("orders"), orders, (each) => each.order_id, (each) => [
    [each.symbol],
    [each.side, each.side === "buy" ? "good" : "bad"],
    [`${quantity(each.filled_quantity) ?? 0} of ${quantity(each.quantity) ?? "?"}`, "n"],
    [String(each.order_type ?? "").replaceAll("_", " ")],
    [priceOf(each), "n"],
    [String(each.status ?? "").replaceAll("_", " "), each.status === "unknown" ? "warn" : ""],
    [each.foreign ? "not ours" : each.strategy ?? each.source],
  ], {
    text: "Cancel",
    label: (each) => `Cancel the order to ${each.side} ${each.symbol}`,
    run: (each) => confirmThen({
      title: `Cancel the order to ${each.side} ${each.symbol}?`, text: each.order_type?.includes("stop") ? "If this stop protects a position, the position has none afterwards." : "", yes: "Cancel order",
    }, () => command("DELETE", `/api/orders/${encodeURIComponent(each.order_id)}`, undefined, `${each.symbol}: cancelling`)),
  });
  note("orders-note", missing || (orders.length ? "" : "No open orders."));
}

function priceOf(order) {
  const parts = [];
  if (typeof order.limit_price === "number") parts.push(number(order.limit_price));
  if (typeof order.stop_price === "number") parts.push(`stop ${number(order.stop_price)}`);
  if (typeof order.trail_amount === "number") parts.push(`trail ${number(order.trail_amount)}`);
  if (typeof order.trail_percent === "number") parts.push(`trail ${number(order.trail_percent)} %`);
  return parts.join(", ") || "market";
}

function showWatchlist(body, missing) {
  const items = body.items ?? [];
  put($("watchlist-count"), missing ? "?" : items.length, "count");
  rows($("watchlist"), items, (each) => each.symbol, (each) => [
    [each.symbol],
    [each.priority, "n"],
    [number(each.score, 1), "n"],
    [number(each.last), "n"],
    [each.no_trade ? `not traded: ${each.no_trade}` : (each.reasons ?? []).join(", "), each.no_trade ? "wrap muted" : "wrap"],
  ]);
  note("watchlist-note", missing || (items.length ? "" : "Nothing is watched."));
}

function note(id, text) {
  const target = $(id);
  if (target.textContent !== text) target.textContent = text;
}

function freshness() {
  const current = state.live && state.fresh;
  if (current) state.lost = null;
  else state.lost ??= new Date();
  document.body.classList.toggle("stale", !current);
  put($("connection"), current ? "live" : state.live ? "no data" : state.tries ? "reconnecting" : "connecting", `badge ${current ? "good" : "warn"}`);
  // A moment's grace, so that an ordinary reconnect does not flash.
  const old = !current && Date.now() - state.lost > 1500;
  $("stale").hidden = !old;
  if (old) put($("stale"), `Not connected since ${clock(state.lost)}: what you see is from then. The kill switch still tries to reach the server.`);
}

function log(time, text, className) {
  const list = $("log");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 30;
  const line = node("li", null, className);
  line.append(node("time", clock(time)), node("span", text));
  list.append(line);
  while (list.children.length > LOG_LINES) list.firstChild.remove();
  if (atEnd) list.scrollTop = list.scrollHeight;
}

// --- WebSocket ---------------------------------------------------------------

function connect() {
  clearTimeout(state.retry);
  const query = new URLSearchParams({ types: TYPES.join(","), level: $("level").value, batch: "true" });
  // After two refusals in a row the number itself may be what is refused: begin anew from the snapshots.
  if (state.seq !== null && state.tries < 3) query.set("after", state.seq);
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  const secret = encodeURIComponent(state.token).replace(/[()]/g, (sign) => `%${sign.charCodeAt(0).toString(16)}`);
  const socket = new WebSocket(`${scheme}://${location.host}/ws/feed?${query}`, [`sigma9.token.${secret}`]);
  state.socket = socket;
  socket.addEventListener("message", (message) => {
    const found = JSON.parse(message.data);
    (Array.isArray(found) ? found : [found]).forEach(take);
  });
  socket.addEventListener("close", () => {
    if (state.socket !== socket) return;
    state.socket = null;
    state.live = false;
    state.tries += 1;
    freshness();
    read(); // tells a token that is no longer valid from a server that is away
    state.retry = setTimeout(() => state.token && connect(), Math.min(15000, 500 * 2 ** Math.min(state.tries, 5)) * (0.75 + Math.random() / 2));
  });
}

function take(event) {
  const data = event.data ?? {};
  if (event.seq !== null) state.seq = event.seq;
  if (data.reason === "snapshot") {
    state.seq = data.as_of_seq;
    state.live = true;
    state.tries = 0;
    freshness();
  }
  switch (event.type) {
    case "status_update": {
      const status = data.status ?? {};
      if (Object.keys(status).length) showStatus(status);
      if (state.journal && status.journal_id && status.journal_id !== state.journal) log(event.ts, "The server has a new journal: event numbers begin anew.", "warning");
      state.journal = status.journal_id ?? state.journal;
      if (data.reason === "snapshot") read();
      else log(event.ts, `${(data.changed ?? []).map((part) => `${part.replaceAll("_", " ")} ${stateOf(status, part)}`).join(", ")}${data.reason ? ` (${data.reason})` : ""}`, "status");
      break;
    }
    case "watchlist_update": {
      if (data.reason !== "snapshot") {
        showWatchlist({ items: data.items }, "");
        const changes = [...(data.added ?? []).map((symbol) => `+${symbol}`), ...(data.removed ?? []).map((symbol) => `−${symbol}`)];
        log(event.ts, `watchlist (${data.reason}): ${changes.join(" ") || "unchanged"}`, "status");
      }
      break;
    }
    case "trade_event":
      log(event.ts, told(data), data.event === "risk_rejected" || data.event === "rejected" || data.event === "unknown" ? "warning" : "trade");
      soon();
      break;
    case "log":
      log(event.ts, `${data.dropped ? `(${data.dropped} lines were lost) ` : ""}${data.message}`, data.level);
      break;
  }
}

function stateOf(status, part) {
  const value = status[part];
  if (part === "kill_switch") return value?.latched ? `on (${value.phase})` : "off";
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

let waiting = null;
function soon() {
  waiting ??= setTimeout(() => { waiting = null; read(); }, 200);
}

// --- asking ------------------------------------------------------------------

function confirmThen({ title, text, yes, danger, flatten, reason }, run) {
  const dialog = $("ask");
  put($("ask-title"), title);
  $("ask-text").textContent = text ?? "";
  put($("ask-yes"), yes, danger ? "danger" : "primary");
  $("ask-flatten").hidden = !flatten;
  $("flatten").value = "";
  $("ask-reason").hidden = !reason;
  $("reason").value = "";
  $("reason").required = reason === "required";
  $("ask-form").onsubmit = () => run({ reason: $("reason").value.trim(), flatten: $("flatten").value });
  dialog.showModal();
  $(reason === "required" ? "reason" : "ask-yes").focus();
}

function kill() {
  confirmThen({
    title: "Kill switch", danger: true, flatten: true, reason: "optional", yes: "Kill now",
    text: "No order passes any more, our open orders are cancelled, and our positions are closed as chosen. It stays on until it is reset.",
  }, ({ reason, flatten }) => {
    const body = {};
    if (reason) body.reason = reason;
    if (flatten) body.flatten = flatten === "true";
    command("POST", "/api/kill-switch", body, "The kill switch is on.");
  });
}

function reset() {
  confirmThen({
    title: "Reset the kill switch", reason: "required", yes: "Reset", text: "The engine stays stopped until it is started. This needs the right admin.",
  }, ({ reason }) => command("DELETE", "/api/kill-switch", { reason }, "The kill switch is off."));
}

// --- beginning and end -------------------------------------------------------

function open() {
  $("login").hidden = true;
  $("app").hidden = false;
  Object.assign(state, { seq: null, tries: 0, live: false, fresh: false, lost: new Date(), journal: null });
  freshness();
  connect();
  read();
  clearInterval(state.timer);
  state.timer = setInterval(() => { freshness(); if (!document.hidden) read(); }, REFRESH_MS);
}

function logout(message) {
  clearTimeout(state.retry);
  clearInterval(state.timer);
  const socket = state.socket;
  state.socket = null;
  state.token = null;
  socket?.close();
  sessionStorage.removeItem(TOKEN);
  if ($("ask").open) $("ask").close();
  for (const id of ["positions", "orders", "watchlist", "log", "account", "parts"]) $(id).replaceChildren();
  $("app").hidden = true;
  $("login").hidden = false;
  $("login-error").textContent = message ?? "";
  $("token").focus();
}

$("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  state.token = $("token").value.trim();
  if (!state.token) return;
  $("login-error").textContent = "";
  try {
    await call("GET", "/api/schedule");
  } catch (error) {
    if (error.status === 401) { logout("This token is not valid."); return; }
    if (!(error instanceof Refused)) { logout("The server does not answer."); return; }
  }
  $("token").value = "";
  sessionStorage.setItem(TOKEN, state.token);
  open();
});
$("logout").addEventListener("click", () => logout());
$("kill").addEventListener("click", kill);
$("reset").addEventListener("click", reset);
$("ask-no").addEventListener("click", () => $("ask").close());
$("start").addEventListener("click", () => command("POST", "/api/engine/start", {}, "The engine was started."));
$("pause").addEventListener("click", () => {
  const paused = state.status?.engine === "paused";
  if (paused) command("POST", "/api/engine/resume", {}, "Entries are taken again.");
  else command("POST", "/api/engine/pause", {}, "No new entries; exits go on.");
});
$("stop").addEventListener("click", () => confirmThen({
  title: "Stop the engine?", text: "Strategies end and no new entries are taken. Exits of open positions go on.", yes: "Stop engine",
}, () => command("POST", "/api/engine/stop", {}, "The engine was stopped.")));
$("scan").addEventListener("click", () => command("POST", "/api/scan", {}, "The market was scanned."));
$("level").addEventListener("change", () => {
  if (state.socket?.readyState === WebSocket.OPEN) state.socket.send(JSON.stringify({ action: "subscribe", types: TYPES, level: $("level").value }));
});
document.addEventListener("visibilitychange", () => { if (!document.hidden && state.token) read(); });

if (state.token) open();
else logout();
