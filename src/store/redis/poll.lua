-- The log after a position, and its head, as of one moment, if the store is the given fleet's.
-- KEYS: head, log, fleet_id. ARGV: seq, token, limit, bytes at most (one entry is always given), fleet (empty: any).
if ARGV[5] ~= '' then
  local fleet = redis.call('GET', KEYS[3]) or ''
  if fleet ~= ARGV[5] then return {'foreign', fleet, {}} end
end
local head = redis.call('GET', KEYS[1]) or '0 0'
local seq, token = ARGV[1], ARGV[2]
if seq .. ' ' .. token == head then return {'entries', head, {}} end
if seq ~= '0' then
  local held = redis.call('XRANGE', KEYS[2], seq .. '-0', seq .. '-0')[1]
  if not held or held[2][2] ~= token then return {'diverged', head, {}} end
end
local found, entries, bytes = redis.call('XRANGE', KEYS[2], '(' .. seq .. '-0', '+', 'COUNT', ARGV[3]), {}, 0
for _, entry in ipairs(found) do
  local flat = {string.match(entry[1], '^%d+')}
  for i = 2, #entry[2], 2 do
    bytes = bytes + #entry[2][i]
    table.insert(flat, entry[2][i])
  end
  if #entries > 0 and bytes > tonumber(ARGV[4]) then break end
  table.insert(entries, flat)
end
return {'entries', head, entries}
