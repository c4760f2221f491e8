-- Writes a gateway's row, if it is as this gateway left it: two processes that take themselves for one would speak for each
-- other.
-- KEYS: fleet. ARGV: instance, the row as it was last confirmed to be written, the same as it may have been written since
-- (empty: never), the row.
local row = redis.call('HGET', KEYS[1], ARGV[1])
if row and row ~= ARGV[2] and row ~= ARGV[3] then return {row == ARGV[4] and 'again' or 'taken', row} end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[4])
return {(row or ARGV[2] == '') and 'kept' or 'back', ''}
