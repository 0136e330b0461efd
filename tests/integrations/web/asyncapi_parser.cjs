// Read a list of AsyncAPI documents from stdin with the official parser (argument: its folder), and print what it
// says of each.
const { Parser } = require(process.argv[2]);
const { readFileSync } = require('fs');

async function read(text) {
  const { document, diagnostics } = await new Parser().parse(JSON.stringify(text));
  const found = diagnostics.map(({ severity, code, message, path }) => ({ severity, code, message, path: path.join('/') }));
  return { valid: document !== undefined, diagnostics: found };
}

Promise.all(JSON.parse(readFileSync(0, 'utf8')).map(read)).then((all) => console.log(JSON.stringify(all)));
