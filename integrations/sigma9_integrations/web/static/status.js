// The status: engine, clocks, kill switch, and how fresh all of it is.

import { reset } from "./ask.js";
import { $, DAY, TIME, WALL_ZONE, marketMoment, node, pairs, put, span, wallTime, written } from "./draw.js";
import { state } from "./state.js";

export function showStatus(status) {
  state.status = status;
  const kill = status.kill_switch ?? {};
  const killed = kill.state === "ON";
  const engine = status.engine ?? "unknown";
  heard(status.feed?.last_at);
  put($("node"), status.node ? `Sigma9 · ${status.node}` : "Sigma9");
  document.title = `${killed ? "KILLED" : engine} · Sigma9`;
  put($("engine"), `engine ${engine}`, `badge ${{ running: "good", paused: "warn", killed: "bad" }[engine] ?? ""}`);
  const market = status.market;
  $("market").hidden = typeof market?.open !== "boolean";
  if (!$("market").hidden) put($("market"), market.open ? "market open" : "market closed", `badge ${market.open ? "good" : ""}`);

  const broker = status.broker ?? {};
  const down = ["socket", "link", "data"].filter((part) => broker[part] !== "up");
  pairs($("parts"), [
    ["Broker", `${broker.name ?? "–"}: ${down.length ? `${down.join(", ")} down` : "up"}`, down.length ? "bad" : "good"],
    ...(broker.note ? [["Broker says", broker.note, "bad"]] : []),
    ["Feed", `${status.feed?.name ?? "–"}: ${status.feed?.state ?? "–"}`],
    ["MQTT", status.mqtt, { connected: "good", disconnected: "bad" }[status.mqtt] ?? ""],
    ["Kill switch", killed ? "on" : "off", killed ? "bad" : "good"],
    ["Last kill drill", kill.last_drill ? written(kill.last_drill, undefined, { dateStyle: "medium", timeStyle: "short" }) : "never"],
    ["Uptime", span(status.uptime)],
  ]);
  put($("version"), `Sigma9 ${status.version ?? ""}`);
  showKill(kill, killed);
  showClocks();

  const paused = engine === "paused";
  put($("pause"), paused ? "Resume" : "Pause");
  $("start").disabled = killed || ["running", "starting", "paused"].includes(engine);
  $("pause").disabled = killed || !["running", "paused"].includes(engine);
  $("stop").disabled = ["stopped", "stopping", "killed"].includes(engine);
}

const PHASES = [["gated", "close the gate"], ["cancelling", "cancel orders"], ["flattening", "close positions"], ["done", "done"]];

function showKill(kill, killed) {
  $("killed").hidden = !killed;
  if (killed) {
    const at = PHASES.findIndex(([name]) => name === kill.phase);
    const steps = at < 0 ? [...PHASES.slice(0, 3), ["failed", "not done yet: it keeps trying"]] : PHASES;
    const reached = at < 0 ? steps.length - 1 : at;
    const list = $("phases");
    while (list.children.length < steps.length) list.append(node("li"));
    steps.forEach(([, text], index) => {
      const step = list.children[index];
      put(step, text, index < reached ? "past" : "");
      if (index === reached) step.setAttribute("aria-current", "step");
      else step.removeAttribute("aria-current");
    });
    put($("killed-text"), facts(kill));
  }
  const scopes = kill.scopes ?? [];
  $("scopes").hidden = !scopes.length;
  if (scopes.length) put($("scopes-text"), killed ? "These stay killed when the kill switch is reset." : `${kill.phase} · ${facts(kill)}`);
  scopeRows(scopes);
}

function facts(kill) {
  const count = (name, word) => (Array.isArray(kill[name]) && kill[name].length ? `${word}: ${kill[name].length}` : null);
  const held = state.status?.active_positions;
  return [
    kill.latched ? "latched: it stays on over a restart" : "NOT LATCHED: it does not survive a restart",
    kill.detail?.replaceAll?.("_", " "), count("cancelled", "orders cancelled"), count("closed", "positions closed"),
    held ? `positions held: ${held}` : null,
    Array.isArray(kill.pending) && kill.pending.length ? `waiting for ${kill.pending.join(", ")}` : null,
    kill.reason && `reason: ${kill.reason}`, kill.source && `by ${kill.source}`, kill.at && `at ${written(kill.at, undefined, TIME)}`,
    kill.error && `error: ${kill.error}`,
  ].filter(Boolean).join(" · ");
}

function scopeRows(scopes) {
  const list = $("scope-list");
  const known = new Map(Array.from(list.children, (row) => [row.dataset.key, row]));
  for (const scope of scopes) {
    const key = JSON.stringify(scope);
    if (known.delete(key)) continue;
    const name = Object.entries(scope).map((part) => part.join(" ")).join(", ");
    const row = node("li");
    row.dataset.key = key;
    const button = node("button", "Reset…");
    button.type = "button";
    button.setAttribute("aria-label", `Reset the kill of the ${name}`);
    button.addEventListener("click", () => reset(scope, name));
    row.append(node("span", name), button);
    list.append(row);
  }
  known.forEach((row) => row.remove());
}

// The market clock as the server last told it: it runs fast, or stands still, where the market is not live.
export function heard(time) {
  const found = time ? new Date(time) : null;
  if (found && !Number.isNaN(found.getTime()) && (state.now === null || found > state.now)) state.now = found;
}

export function showClocks() {
  const status = state.status ?? {};
  const market = status.market ?? {};
  const live = status.clock === "live";
  const named = { timeZoneName: "short" };
  const shape = { ...DAY, ...TIME, ...named };
  const open = { true: "open", false: "closed" }[market.open] ?? null;
  pairs($("clocks"), [
    [`Market clock (${state.zone}${live || !status.clock ? "" : `, ${status.clock}`})`, written(live ? new Date() : state.now, state.zone, shape)],
    [`Wall clock (${WALL_ZONE})`, written(new Date(), undefined, shape)],
    ["Market", open && (market.open && market.next_close ? `open until ${marketMoment(market.next_close, named)}` : open), market.open ? "good" : ""],
    ["Next open", marketMoment(market.next_open, named)],
  ]);
}

export function freshness() {
  const current = state.live && state.fresh;
  if (current) state.lost = null;
  else state.lost ??= new Date();
  document.body.classList.toggle("stale", !current);
  put($("connection"), current ? "connected" : state.live ? "no data" : state.tries ? "reconnecting" : "connecting", `badge ${current ? "good" : "warn"}`);
  // A moment's grace, so that an ordinary reconnect does not flash.
  const old = !current && Date.now() - state.lost > 1500;
  $("stale").hidden = !old;
  if (old) put($("stale"), `Not connected since ${wallTime(state.lost)}: what you see is from then. The kill switch still tries to reach the server.`);
}
