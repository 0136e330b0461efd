// The dashboard: login, and the beat that reads the state over REST.

import { answer, ask, dismiss, kill, press, reset } from "./ask.js";
import { $, WALL_ZONE, put } from "./draw.js";
import { BACKLOG, connect, hangUp, listen } from "./events.js";
import { PANELS, show } from "./panels.js";
import { Refused, call } from "./rest.js";
import { keep, state } from "./state.js";
import { freshness, showClocks, showStatus } from "./status.js";

const STATUS_MS = 1000;
const REFRESH_MS = 3000;
const PATHS = ["status", ...PANELS];

async function read() {
  if (state.reading) { state.again = true; return; }
  state.reading = true;
  try {
    do {
      state.again = false;
      const results = await Promise.allSettled(PATHS.map((name) => call("GET", `/api/${name}`)));
      if (!state.token) return; // logged out meanwhile
      if (results.some((result) => result.reason?.status === 401)) { logout("The token is no longer valid."); return; }
      // An answer that refuses is an answer: the server is there. A missing one is not.
      state.fresh = results.every((result) => result.status === "fulfilled" || result.reason instanceof Refused);
      state.read = performance.now();
      results.forEach(({ value, reason }, index) => shown(PATHS[index], value, reason));
    } while (state.again);
  } finally {
    state.reading = false;
    freshness();
  }
}

// Between two readings of everything: what moves by the second.
async function readStatus() {
  if (state.reading) return;
  try {
    const status = await call("GET", "/api/status");
    if (state.token) showStatus(status);
  } catch (error) { // whatever else it is, the next reading of everything says it
    if (error.status === 401 && state.token) logout("The token is no longer valid.");
  }
}

function shown(name, body, reason) {
  const missing = reason instanceof Refused ? reason.message : "";
  if (name !== "status") {
    if (body || missing) show(name, body, missing); // no answer: what is shown stays, marked as old
  } else if (body) {
    showStatus(body);
  }
}

function open() {
  $("login").hidden = true;
  $("app").hidden = false;
  Object.assign(state, { seq: null, tries: 0, live: false, fresh: false, lost: new Date(), journal: null, now: null, status: null });
  $("log-note").textContent = `Wall time, ${WALL_ZONE}, since this page was opened. Lines that only repeat an event are left out.`;
  freshness();
  // The zone comes with the first reading, and the events are written in it.
  read().then(() => { if (state.token) connect(); });
  clearInterval(state.timer);
  state.timer = setInterval(tick, STATUS_MS);
}

function tick() {
  freshness();
  showClocks();
  put($("events-note"), `Market time, ${state.zone}; the newest ${BACKLOG} and what came since.`);
  if (document.hidden) return;
  if (performance.now() - state.read > REFRESH_MS) read();
  else readStatus();
}

function logout(message) {
  clearInterval(state.timer);
  keep(null);
  hangUp();
  dismiss();
  const filled = ["positions", "orders", "watchlist", "risk", "plugins", "schedule", "events", "log", "account", "parts", "clocks", "scope-list"];
  for (const id of filled) $(id).replaceChildren();
  for (const id of ["engine-said", "scan-said"]) $(id).textContent = "";
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
  keep(state.token);
  open();
});
$("logout").addEventListener("click", () => logout());
$("kill").addEventListener("click", kill);
$("reset").addEventListener("click", () => reset());
$("ask-no").addEventListener("click", dismiss);
$("ask-form").addEventListener("submit", (event) => { event.preventDefault(); answer(); });
document.addEventListener("keydown", (event) => { if (event.key === "Escape" && $("ask").open) dismiss(); });

$("start").addEventListener("click", () => press($("start"), "engine-said", "/api/engine/start", "The engine was started."));
$("pause").addEventListener("click", () => {
  const paused = state.status?.engine === "paused";
  if (paused) press($("pause"), "engine-said", "/api/engine/resume", "Entries are taken again.");
  else press($("pause"), "engine-said", "/api/engine/pause", "No new entries; exits go on.");
});
$("stop").addEventListener("click", () => ask({
  title: "Stop the engine?", text: "Strategies end and no new entries are taken. Exits of open positions go on.", yes: "Stop engine",
  method: "POST", path: "/api/engine/stop", done: "The engine was stopped.",
}));
$("scan").addEventListener("click", () => press($("scan"), "scan-said", "/api/scan", "The market was scanned."));

const TABS = ["events", "log"];
function choose(name) {
  for (const each of TABS) {
    $(`tab-${each}`).setAttribute("aria-selected", String(each === name));
    $(`tab-${each}`).tabIndex = each === name ? 0 : -1;
    $(`panel-${each}`).hidden = each !== name;
  }
}
for (const name of TABS) {
  $(`tab-${name}`).addEventListener("click", () => choose(name));
  $(`tab-${name}`).addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = TABS.find((each) => each !== name);
    choose(other);
    $(`tab-${other}`).focus();
  });
}
$("kinds").addEventListener("change", () => { $("events").dataset.show = $("kinds").value; });
$("level").addEventListener("change", listen);
document.addEventListener("sigma9:out", (event) => { if (state.token) logout(event.detail); });
document.addEventListener("sigma9:moved", () => { if (state.token) read(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden && state.token) read(); });

if (state.token) open();
else logout();
