-- The rows of all gateways, and for how many milliseconds they have seen this run of the server: for a while after a restart
-- rows may be missing that the server has lost.
-- KEYS: run, fleet.
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local known, since = string.match(redis.call('GET', KEYS[1]) or '', '^(%x+) (%d+)$')
if known ~= run then
  since = string.format('%.0f', now)
  redis.call('SET', KEYS[1], run .. ' ' .. since)
end
return {string.format('%.0f', now - since), redis.call('HGETALL', KEYS[2])}
