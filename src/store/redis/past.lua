-- Positions of the log, the latest first: before one of them, which the log must hold, or from the end.
-- KEYS: log. ARGV: seq, token (both 0: from the end), limit.
local before = '+'
if ARGV[1] ~= '0' then
  local held = redis.call('XRANGE', KEYS[1], ARGV[1] .. '-0', ARGV[1] .. '-0')[1]
  if not held or held[2][2] ~= ARGV[2] then return {'diverged', {}} end
  before = '(' .. ARGV[1] .. '-0'
end
local positions = {}
for i, entry in ipairs(redis.call('XREVRANGE', KEYS[1], before, '-', 'COUNT', ARGV[3])) do
  positions[i] = string.match(entry[1], '^%d+') .. ' ' .. entry[2][2]
end
return {'positions', positions}
