-- What the rows belong to (this run of the server, and the fork that was noted last), the same as it was when they were last
-- known to be whole, and the rows of all gateways, as of one moment.
-- KEYS: run, fork, fleet.
local now = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local fork = redis.call('GET', KEYS[2])
if fork then now = now .. ' ' .. fork end
return {now, redis.call('GET', KEYS[1]) or '', redis.call('HGETALL', KEYS[3])}
