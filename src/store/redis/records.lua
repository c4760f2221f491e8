-- Records of the stream, from its newest end back or from an entry on, in that order.
-- KEYS: stream. ARGV: 'newest' or 'after', the id of the entry that was read last (empty: from the end), limit, bytes at
-- most (one record is always given).
local found
if ARGV[1] == 'newest' then
  found = redis.call('XREVRANGE', KEYS[1], ARGV[2] == '' and '+' or '(' .. ARGV[2], '-', 'COUNT', ARGV[3])
else
  found = redis.call('XRANGE', KEYS[1], ARGV[2] == '' and '-' or '(' .. ARGV[2], '+', 'COUNT', ARGV[3])
end
local records, bytes = {}, 0
for _, entry in ipairs(found) do
  local fields = {}
  for i = 1, #entry[2], 2 do fields[entry[2][i]] = entry[2][i + 1] end
  local record = fields.record or ''
  bytes = bytes + #record
  if #records > 0 and bytes > tonumber(ARGV[4]) then break end
  table.insert(records, {entry[1], record})
end
return records
