// The server of Node: servers.js RECORDS, as servers.py.
'use strict';

const crypto = require('node:crypto');
const fs = require('node:fs');
const http = require('node:http');
const zlib = require('node:zlib');

const PIECE = 65536;
const LARGE = 1 << 20;
const FIELDS = [
  ['X-Many', 'one'], ['X-Many', 'two'], ['X-Many', 'one'], ['Set-Cookie', 'a=1; Path=/'], ['Set-Cookie', 'b=2; Secure'],
  ['Cache-Control', 'private, max-age=0'], ['X-Odd', 'a,b;c="d e" \'f\''], ['Link', '<a>; rel=next, <b>; rel=prev'],
];

const records = process.argv[2];
const pattern = (size) => Buffer.alloc(size, Buffer.from(Array.from({ length: 251 }, (_, byte) => byte)));
const actionOf = (target) => target.split('?')[0].split('/orders/').pop().split('/');

function record(request, body) {
  const raw = request.rawHeaders;
  const fields = Array.from({ length: raw.length / 2 }, (_, at) => [raw[2 * at].toLowerCase(), raw[2 * at + 1]]);
  fs.appendFileSync(records, `${JSON.stringify({
    case: request.headers['x-case'], method: request.method, target: request.url, fields, size: body.length,
    sha256: crypto.createHash('sha256').update(body).digest('hex'),
  })}\n`);
}

function partOf(body, wanted) {
  const fields = [['Accept-Ranges', 'bytes'], ['ETag', '"x"']];
  if (!wanted) return [200, fields, body];
  const [first, last] = wanted.replace('bytes=', '').split('-').map((text) => (text ? Number(text) : body.length - 1));
  if (first >= body.length) return [416, [...fields, ['Content-Range', `bytes */${body.length}`]], Buffer.from('beyond')];
  return [206, [...fields, ['Content-Range', `bytes ${first}-${last}/${body.length}`]], body.subarray(first, last + 1)];
}

/** Status, fields and body; null is a body in pieces. */
function answer(request, body) {
  const [action, detail] = actionOf(request.url);
  switch (action) {
    case 'echo': return [200, [['Content-Type', request.headers['content-type'] ?? 'text/plain']], body];
    case 'fields': return [200, [['X-Large', 'v'.repeat(8000)], ['X-Large', 'w'.repeat(2000)]], Buffer.from('fields')];
    case 'gzip': return [200, [['Content-Encoding', 'gzip'], ['Vary', 'Accept-Encoding']], zlib.gzipSync(pattern(LARGE))];
    case 'stream': case 'trailers': return [200, [['Content-Type', 'application/x-ndjson']], null];
    case 'large': return partOf(pattern(LARGE), request.headers.range);
    default: break;
  }
  const more = {
    201: [['Location', '/v1/new']], 302: [['Location', 'https://elsewhere.example/a?b=c']], 304: [['ETag', '"x"']],
    503: [['Retry-After', '7']],
  };
  return [Number(detail), more[detail] ?? [], Buffer.from(['204', '304'].includes(detail) ? '' : `status ${detail}`)];
}

const server = http.createServer((request, response) => {
  const isDuplex = actionOf(request.url)[0] === 'duplex';
  if (isDuplex) response.writeHead(200, FIELDS.flat());
  const chunks = [];
  request.on('data', (chunk) => {
    chunks.push(chunk);
    if (isDuplex) response.write(chunk);
  });
  request.on('end', () => {
    const received = Buffer.concat(chunks);
    record(request, received);
    if (isDuplex) return response.end();
    const [status, more, body] = answer(request, received);
    if (body === null) {
      const isTrailed = actionOf(request.url)[0] === 'trailers';
      response.writeHead(status, [...FIELDS, ...more, ...(isTrailed ? [['Trailer', 'X-Sum, X-Other']] : [])].flat());
      for (let at = 0; at < LARGE; at += PIECE) response.write(pattern(LARGE).subarray(at, at + PIECE));
      if (isTrailed) response.addTrailers([['X-Sum', '7'], ['X-Other', 'a b'], ['X-Other', 'c']]);
      return response.end();
    }
    const length = [204, 304].includes(status) ? [] : [['Content-Length', String(body.length)]];
    response.writeHead(status, [...FIELDS, ...more, ...length].flat());
    return response.end(body);
  });
});
server.keepAliveTimeout = 60000;
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
