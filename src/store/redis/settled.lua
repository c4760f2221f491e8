-- The rows are whole, if it is still the same run of the server and no other fork was noted meanwhile; whether it is so.
-- KEYS: run, fork. ARGV: run and fork as they were seen for long enough.
local now = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local fork = redis.call('GET', KEYS[2])
if fork then now = now .. ' ' .. fork end
if now ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], now)
return 1
