-- The rows of this run of the server are whole, if it is still the one that was meant.
-- KEYS: run. ARGV: run.
if string.match(redis.call('INFO', 'server'), 'run_id:(%x+)') == ARGV[1] then redis.call('SET', KEYS[1], ARGV[1]) end
