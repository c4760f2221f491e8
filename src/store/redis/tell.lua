-- Writes a gateway's row, if it is as this gateway left it: two processes that take themselves for one would speak for each
-- other. Gives the fork that was noted last too, so that whoever tells hears of it.
-- KEYS: fleet, fork. ARGV: instance, the row as it was last confirmed to be written, the same as it may have been written since
-- (empty: never), the row.
local row = redis.call('HGET', KEYS[1], ARGV[1])
local fork = redis.call('GET', KEYS[2]) or ''
if row and row ~= ARGV[2] and row ~= ARGV[3] then return {row == ARGV[4] and 'again' or 'taken', row, fork} end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[4])
return {(row or ARGV[2] == '') and 'kept' or 'back', '', fork}
