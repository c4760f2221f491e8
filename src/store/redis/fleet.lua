-- This run of the server, the run whose rows are known to be whole, and the rows of all gateways, as of one moment.
-- KEYS: run, fleet.
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
return {run, redis.call('GET', KEYS[1]) or '', redis.call('HGETALL', KEYS[2])}
