// Requests to the server.

import { state, tell } from "./state.js";

export class Refused extends Error {
  constructor(status, error) {
    super(error?.message ?? `HTTP ${status}`);
    this.status = status;
    this.details = error?.details ?? {};
  }
}

export async function call(method, path, body, id) {
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

export function freshId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // randomUUID is missing on plain http
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Carries out a command; gives the sentence that says why not, null where it was carried out.
export async function command(method, path, body, id = freshId()) {
  try {
    await call(method, path, body, id);
    return null;
  } catch (error) {
    if (error.status === 401) tell("out", "The token is no longer valid.");
    if (error instanceof Refused) return error.message;
    return `No answer: whether it was carried out is not known (${error.message}).`;
  } finally {
    tell("moved");
  }
}
