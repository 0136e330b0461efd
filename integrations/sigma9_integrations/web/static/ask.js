// Commands: those that are asked about first, in a sheet, and those of a plain button.

import { $, put, toast } from "./draw.js";
import { command, freshId } from "./rest.js";

// Asks before a command goes out, in a sheet that leaves the kill switch within reach. It stays open until the
// command was carried out; what went wrong stands beside its button.
let asked = null;
export function ask(question) {
  asked = { id: freshId(), from: document.activeElement, ...question };
  put($("ask-title"), asked.title);
  $("ask-text").textContent = asked.text ?? "";
  put($("ask-yes"), asked.yes, asked.danger ? "danger" : "primary");
  $("ask-yes").disabled = false;
  $("ask-said").textContent = "";
  $("ask-flatten").hidden = !asked.flatten;
  $("flatten").value = "";
  $("ask-reason").hidden = !asked.reason;
  $("reason").value = "";
  $("reason").required = asked.reason === "required";
  if (!$("ask").open) $("ask").show();
  $(asked.reason === "required" ? "reason" : "ask-yes").focus();
}

export async function answer() {
  const mine = asked;
  const body = { ...mine.body };
  const reason = $("reason").value.trim();
  if (mine.reason && reason) body.reason = reason;
  if (mine.flatten && $("flatten").value) body.flatten = $("flatten").value === "true";
  $("ask-yes").disabled = true;
  $("ask-said").textContent = "…";
  const wrong = await command(mine.method, mine.path, body, mine.id); // the same id again, so that it is done once
  if (wrong === null) toast(mine.done, "good");
  if (asked !== mine) { // another question has taken the sheet meanwhile, or it was closed
    if (wrong !== null) toast(`${mine.title} ${wrong}`, "bad");
  } else if (wrong === null) {
    dismiss();
  } else {
    $("ask-yes").disabled = false;
    $("ask-said").textContent = wrong;
  }
}

export function dismiss() {
  const from = asked?.from;
  asked = null;
  if ($("ask").open) $("ask").close();
  if (from?.isConnected) from.focus();
}

export function kill() {
  ask({
    title: "Kill switch", danger: true, flatten: true, reason: "optional", yes: "Kill now",
    text: "No order passes any more, our open orders are cancelled, and our positions are closed as chosen. It stays on until it is reset. Where this page gets no answer, run sigma9 kill on the server's machine.",
    method: "POST", path: "/api/kill-switch", done: "The kill switch is on.",
  });
}

export function reset(scope, name) {
  ask({
    title: scope ? `Reset the kill of the ${name}` : "Reset the kill switch", reason: "required", yes: "Reset",
    text: scope ? "Its entries are taken again. This needs the right admin." : "The engine stays stopped until it is started. This needs the right admin.",
    method: "DELETE", path: "/api/kill-switch", body: scope ? { scope } : {}, done: scope ? `The ${name} is no longer killed.` : "The kill switch is off.",
  });
}

// A button that needs no question; what went wrong stands beside it.
export async function press(button, place, path, done) {
  button.disabled = true;
  $(place).textContent = "…";
  const wrong = await command("POST", path, {});
  button.disabled = false;
  $(place).textContent = wrong ?? "";
  if (wrong === null) toast(done, "good");
}
