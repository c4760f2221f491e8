// The clients of Node: clients.js KIND URL BEARER CASES, as clients.py; undici speaks HTTP/2 over TLS alone.
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const http2 = require('node:http2');
const zlib = require('node:zlib');

const PIECE = 10000;

const ca = process.env.INTEROP_CA && fs.readFileSync(process.env.INTEROP_CA);
const [kind, url, bearer, casesFile] = process.argv.slice(2);

const pattern = (size) => Buffer.alloc(size, Buffer.from(Array.from({ length: 251 }, (_, byte) => byte)));

function bodyOf(given) {
  const body = pattern(given.body.size);
  return given.body.compressed ? zlib.gzipSync(body) : body;
}

function* piecesOf(body) {
  for (let at = 0; at < body.length; at += PIECE) yield body.subarray(at, at + PIECE);
}

function fieldsOf(given) {
  const fields = [['Authorization', `Bearer ${bearer}`], ['X-Case', given.name], ...(given.fields ?? [])];
  return fields.map(([name, value]) => [name, Number.isInteger(value) ? 'v'.repeat(value) : value]);
}

function pairs(raw) {
  return Array.from({ length: raw.length / 2 }, (_, at) => [String(raw[2 * at]).toLowerCase(), String(raw[2 * at + 1])]);
}

/** By undici, several requests on a connection. */
function undiciClient(allowH2) {
  const { Client } = require('undici');
  const base = new URL(url);
  const client = new Client(base.origin, { pipelining: 10, allowH2, connect: { ca } });
  const exchange = (given) => new Promise((resolve, reject) => {
    const body = given.body && bodyOf(given);
    const chunks = [];
    let head;
    client.dispatch({
      path: base.pathname + given.path,
      method: given.method,
      headers: fieldsOf(given).flat(),
      body: given.body?.streamed ? require('node:stream').Readable.from(piecesOf(body)) : body,
      idempotent: true,
      blocking: false,
    }, {
      onConnect() {},
      onError: reject,
      onHeaders(status, raw) { if (status >= 200) head = { status, fields: pairs(raw.map((part) => part.toString('latin1'))) }; return true; },
      onData(chunk) { chunks.push(chunk); return true; },
      onComplete(trailers) {
        resolve({ version: allowH2 ? 'HTTP/2' : 'HTTP/1.1', ...head, body: Buffer.concat(chunks), trailers: pairs((trailers ?? []).map((part) => part.toString('latin1'))) });
      },
    });
  });
  return { exchange, close: () => client.close(), isPipelining: !allowH2 };
}

/** By Node's own HTTP/2. */
function http2Client() {
  const base = new URL(url);
  const session = http2.connect(base.origin, { ca });
  const exchange = (given) => new Promise((resolve, reject) => {
    const head = { ':method': given.method, ':path': base.pathname + given.path };
    for (const [name, value] of fieldsOf(given)) head[name.toLowerCase()] = [...(head[name.toLowerCase()] ?? []), value];
    const single = Object.fromEntries(Object.entries(head).map(([name, value]) => [name, Array.isArray(value) && value.length === 1 ? value[0] : value]));
    const body = given.body && bodyOf(given);
    if (body && !given.body.streamed) single['content-length'] = String(body.length);
    const stream = session.request(single, { endStream: !body });
    const chunks = [];
    let [answered, trailers, received] = [null, [], 0];
    const pieces = body ? piecesOf(body) : null;
    let sent = 0;
    const sendNext = () => {
      const next = pieces.next();
      if (next.done) return stream.end();
      sent += next.value.length;
      return stream.write(next.value);
    };
    stream.on('response', (fields, _flags, raw) => { answered = { status: fields[':status'], fields: pairs(raw).filter(([name]) => !name.startsWith(':')) }; });
    stream.on('trailers', (_fields, _flags, raw) => { trailers = pairs(raw); });
    stream.on('data', (chunk) => {
      chunks.push(chunk);
      received += chunk.length;
      // Each piece comes back before the next is sent.
      if (given.body?.duplex && received === sent) sendNext();
    });
    stream.on('error', reject);
    stream.on('end', () => resolve({ version: 'HTTP/2', ...answered, body: Buffer.concat(chunks), trailers }));
    if (given.body?.duplex) sendNext();
    else if (given.body?.streamed) { for (const piece of pieces) stream.write(piece); stream.end(); }
    else if (body) stream.end(body);
  });
  return { exchange, close: () => session.close(), isDuplex: true };
}

async function main() {
  const client = { undici: () => undiciClient(false), 'undici-h2': () => undiciClient(true), http2: http2Client }[kind]();
  const cases = JSON.parse(fs.readFileSync(casesFile)).filter((given) => !given.body?.duplex || client.isDuplex);
  const answers = [];
  for (const given of cases) {
    const exchange = client.exchange(given);
    // Without waiting for what came before, where the client can.
    answers.push(client.isPipelining && !given.body ? exchange : Promise.resolve(await exchange));
  }
  for (const [at, answer] of answers.entries()) {
    const { version, status, fields, body, trailers } = await answer;
    const sha256 = crypto.createHash('sha256').update(body).digest('hex');
    console.log(JSON.stringify({ case: cases[at].name, version, status, size: body.length, fields, sha256, trailers }));
  }
  await client.close();
}

main().catch((error) => { console.error(error); process.exitCode = 1; });
