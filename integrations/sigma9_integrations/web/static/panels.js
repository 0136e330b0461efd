// The panels: account, positions, orders, watchlist, risk rules, plugins, schedule.

import { ask } from "./ask.js";
import { $, marketMoment, money, note, number, pairs, put, quantity, rows, signed, tone } from "./draw.js";
import { state } from "./state.js";

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
    run: (each) => ask({
      title: `Close ${each.symbol}?`, text: `An order for ${quantity(Math.abs(each.quantity))} ${each.symbol} is sent at the market.`, yes: "Close position",
      method: "POST", path: `/api/positions/${encodeURIComponent(each.symbol)}/close`, done: `${each.symbol}: closing`,
    }),
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
    run: (each) => ask({
      title: `Cancel the order to ${each.side} ${each.symbol}?`, text: each.order_type?.includes("stop") ? "If this stop protects a position, the position has none afterwards." : "", yes: "Cancel order",
      method: "DELETE", path: `/api/orders/${encodeURIComponent(each.order_id)}`, done: `${each.symbol}: cancelling`,
    }),
  });
  note("orders-note", missing || (orders.length ? "" : "No open orders."));
}

function priceOf(order) {
  const parts = [];
  if (typeof order.limit_price === "number") parts.push(number(order.limit_price));
  if (typeof order.stop_price === "number") parts.push(`stop ${number(order.stop_price)}`);
  if (typeof order.trail_amount === "number") parts.push(`trail ${number(order.trail_amount)}`);
  if (typeof order.trail_percent === "number") parts.push(`trail ${number(order.trail_percent)} %`);
  if (order.adjustment) parts.push(`trail from ${number(order.adjustment.trigger_price)}`);
  const kind = parts.join(", ") || "market";
  return order.good_after ? `${kind}, held until ${marketMoment(order.good_after, { second: "2-digit" })}` : kind;
}

export function showWatchlist(body, missing) {
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

function showRisk(body, missing) {
  const rules = body.rules ?? [];
  const tripped = rules.filter((each) => each.tripped).length;
  put($("risk-count"), missing ? "?" : tripped ? `${tripped} tripped` : rules.length, `count ${tripped ? "bad" : ""}`);
  rows($("risk"), rules, (each) => each.rule, (each) => [
    [each.rule],
    [quantity(each.used, 2), "n"],
    [quantity(each.limit, 2), "n"],
    [null, "opt", typeof each.used === "number" && each.limit > 0 ? { value: each.used, max: each.limit, label: `${each.rule}: ${quantity(each.used, 2)} of ${quantity(each.limit, 2)}` } : null],
    each.tripped ? [each.until ? `tripped until ${marketMoment(each.until)}` : "tripped until it is cleared", "bad"] : each.enabled ? ["on", "good"] : ["off", "warn"],
  ], {
    text: "Clear",
    when: (each) => each.tripped && !each.until,
    label: (each) => `Clear the trip of ${each.rule}`,
    run: (each) => ask({
      title: `Clear the trip of ${each.rule}?`, text: "Entries are taken again as far as this rule goes. This needs the right admin.", yes: "Clear",
      method: "POST", path: `/api/risk/${encodeURIComponent(each.rule)}/clear`, done: `${each.rule}: cleared`,
    }),
  });
  note("risk-note", missing || (rules.length ? "" : "No risk rules."));
}

function showPlugins(body, missing) {
  const plugins = [...(body.plugins ?? [])].sort((one, other) => Number(one.healthy) - Number(other.healthy)); // what is wrong comes first
  const ill = plugins.filter((each) => !each.healthy).length;
  put($("plugins-count"), missing ? "?" : ill ? `${ill} of ${plugins.length} not healthy` : `${plugins.length}, all healthy`, `count ${ill ? "bad" : ""}`);
  rows($("plugins"), plugins, (each) => `${each.kind} ${each.name}`, (each) => [
    [each.name],
    [each.kind, "opt"],
    [each.version, "opt"],
    each.healthy ? [each.enabled ? "healthy" : "off", each.enabled ? "good" : "muted"] : [each.error ?? "not healthy", "wrap bad"],
  ]);
  note("plugins-note", missing || (plugins.length ? "" : "No plugins."));
}

function showSchedule(body, missing) {
  const jobs = body.jobs ?? [];
  if (body.timezone) state.zone = body.timezone;
  put($("schedule-zone"), `${state.zone}, by the market clock`, "count");
  rows($("schedule"), jobs, (each) => each.id, (each) => [
    [each.id],
    [marketMoment(each.next_run) ?? "not planned", "when"],
    [marketMoment(each.last_run) ?? "never", "opt"],
    [typeof each.last_result === "object" && each.last_result !== null ? JSON.stringify(each.last_result) : each.last_result, "wrap"],
  ]);
  note("schedule-note", missing || (jobs.length ? "" : "Nothing is scheduled."));
}

const SHOWN = {
  account: showAccount, positions: showPositions, orders: showOrders, watchlist: showWatchlist,
  risk: showRisk, plugins: showPlugins, schedule: showSchedule,
};
export const PANELS = Object.keys(SHOWN);

// Shows what a panel's path has answered; `missing` is the sentence of an answer that refused.
export function show(name, body, missing) {
  SHOWN[name](body ?? {}, missing);
}
