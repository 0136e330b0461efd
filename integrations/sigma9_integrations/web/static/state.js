// What the dashboard knows. The token lives in sessionStorage and goes out in a header or as a sub-protocol.

const TOKEN = "sigma9.token";

export const state = {
  token: sessionStorage.getItem(TOKEN),
  socket: null,
  live: false,          // the WebSocket is open and has given its snapshots
  fresh: false,         // the last reading over REST succeeded
  lost: null,           // since when what is shown is old
  seq: null,            // the newest durable event that was shown
  journal: null,
  tries: 0,
  retry: null,
  timer: null,
  reading: false,
  again: false,
  read: 0,              // when everything was read last
  currency: "USD",
  zone: "UTC",          // the market's
  now: null,            // the market clock, as last heard of
  status: null,
};

export function keep(token) {
  state.token = token;
  if (token === null) sessionStorage.removeItem(TOKEN);
  else sessionStorage.setItem(TOKEN, token);
}

// Two things that any part may have to say to the whole: "out" (the token is not valid, with a sentence) and "moved"
// (something changed: read the state anew).
export function tell(what, detail) {
  document.dispatchEvent(new CustomEvent(`sigma9:${what}`, { detail }));
}
