// Renders /openapi.json: every operation with its parameters, body and answers. Text only, never markup.
"use strict";

const TOKEN = "sigma9.token";
const $ = (id) => document.getElementById(id);
let token = sessionStorage.getItem(TOKEN);
let schemas = {};

function node(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// Writes a schema the way its JSON looks, references put in place, to a bounded depth.
function outline(schema, defs, depth = 0) {
  if (!schema || depth > 6) return "...";
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    return outline(defs?.[name] ?? schemas[name], defs, depth);
  }
  const inner = schema.$defs ?? defs;
  const pad = "  ".repeat(depth + 1);
  if (schema.anyOf) return schema.anyOf.map((each) => outline(each, inner, depth)).join(" | ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((each) => JSON.stringify(each)).join(" | ");
  if (schema.type === "array") return `[${outline(schema.items ?? {}, inner, depth)}, ...]`;
  if (schema.properties) {
    const lines = Object.entries(schema.properties).map(([name, part]) => {
      const needed = schema.required?.includes(name) ? "" : "?";
      return `${pad}${name}${needed}: ${outline(part, inner, depth + 1)}`;
    });
    return `{\n${lines.join("\n")}\n${"  ".repeat(depth)}}`;
  }
  const bounds = ["minimum", "exclusiveMinimum", "maximum", "maxLength", "pattern", "format"].filter((key) => key in schema);
  const shown = bounds.map((key) => `${{ minimum: "≥ ", exclusiveMinimum: "> ", maximum: "≤ ", maxLength: "at most " }[key] ?? ""}${schema[key]}`);
  return `${schema.type ?? "any"}${shown.length ? ` (${shown.join(", ")})` : ""}`;
}

function operation(path, verb, item) {
  const details = node("details");
  const summary = node("summary");
  summary.append(node("span", verb.toUpperCase(), `verb ${verb}`), node("code", path), node("span", item.summary, "muted"));
  details.append(summary);
  // Built when it is opened: a hundred outlines at once would be slow on a phone.
  details.addEventListener("toggle", () => { if (details.open && !details.querySelector("div")) details.append(body(path, verb, item)); });
  return details;
}

function body(path, verb, item) {
  const box = node("div");
  if (item.description) box.append(node("p", item.description.replaceAll("`", "")));
  if (item.parameters?.length) {
    box.append(node("h3", "Parameters"));
    const table = node("table");
    for (const each of item.parameters) {
      const row = node("tr");
      const name = node("td");
      name.append(node("code", each.name));
      row.append(name, node("td", each.in), node("td", outline(each.schema)), node("td", (each.description ?? "").replaceAll("`", "")));
      table.append(row);
    }
    box.append(table);
  }
  const content = item.requestBody?.content?.["application/json"]?.schema;
  if (content) box.append(node("h3", "Body"), node("pre", outline(content, content.$defs)));
  box.append(node("h3", "Answers"));
  for (const [status, each] of Object.entries(item.responses ?? {})) {
    const line = node("p");
    line.append(node("strong", status), ` ${each.description}`);
    box.append(line);
    const schema = Object.values(each.content ?? {})[0]?.schema;
    if (status === "200" && schema) box.append(node("pre", outline(schema)));
  }
  if (verb === "get" && !path.includes("{")) box.append(attempt(path));
  return box;
}

function attempt(path) {
  const box = node("div");
  const button = node("button", "Try it");
  button.type = "button";
  const answer = node("pre");
  answer.hidden = true;
  button.addEventListener("click", async () => {
    answer.hidden = false;
    answer.textContent = "…";
    try {
      const response = await fetch(path, { headers: { Authorization: `Bearer ${token}` }, cache: "no-store" });
      const text = await response.text();
      let shown = text;
      try { shown = JSON.stringify(JSON.parse(text), null, 2); } catch { /* not JSON */ }
      answer.textContent = `${response.status}\n${shown}`;
    } catch (error) {
      answer.textContent = `No answer: ${error.message}`;
    }
  });
  box.append(button, answer);
  return box;
}

async function show() {
  let document_;
  try {
    const response = await fetch("/openapi.json", { headers: { Authorization: `Bearer ${token}` }, cache: "no-store" });
    if (!response.ok) throw new Error(response.status === 401 ? "This token is not valid." : `HTTP ${response.status}`);
    document_ = await response.json();
  } catch (error) {
    $("docs").hidden = true;
    $("login").hidden = false;
    $("login-error").textContent = token ? error.message : "";
    $("token").focus();
    return;
  }
  sessionStorage.setItem(TOKEN, token);
  schemas = document_.components.schemas;
  $("login").hidden = true;
  $("docs").hidden = false;
  $("title").textContent = `${document_.info.title} ${document_.info.version}`;
  $("about").textContent = document_.info.description.replaceAll("`", "");
  $("paths").replaceChildren();
  for (const tag of document_.tags) {
    $("paths").append(node("h2", tag.description));
    for (const [path, verbs] of Object.entries(document_.paths)) {
      for (const [verb, item] of Object.entries(verbs)) {
        if (item.tags?.includes(tag.name)) $("paths").append(operation(path, verb, item));
      }
    }
  }
}

$("login-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  $("token").value = "";
  if (token) show();
});

if (token) show();
else { $("login").hidden = false; $("token").focus(); }
