-- Appends audit records to a stream, those that it does not have yet. Everything is checked before anything is written.
-- KEYS: stream, positions. ARGV: entries kept at least, the directory they are from, number of journals, for each its name and
-- the last number that the writer knows to be here, then for each record the number of its journal in that list, its seq and
-- its text.
local journals, stored, last = {}, {}, {}
local count = tonumber(ARGV[3])
local function field(i) return journals[i] .. ' ' .. ARGV[2] end
for i = 1, count do
  journals[i] = ARGV[2 + 2 * i]
  stored[i] = tonumber(redis.call('HGET', KEYS[2], field(i)) or '0')
  if stored[i] < tonumber(ARGV[3 + 2 * i]) then return {'behind', journals[i], string.format('%.0f', stored[i])} end
end
-- A user who may append and not remember would append everything again.
for _, command in ipairs({{'XADD', KEYS[1], '*', 'a', 'b'}, {'HSET', KEYS[2], 'a', 'b'}}) do
  if redis.acl_check_cmd and not redis.acl_check_cmd(unpack(command)) then
    return redis.error_reply('NOPERM this user may not run ' .. command[1] .. ' on ' .. command[2])
  end
end
for at = 4 + 2 * count, #ARGV, 3 do
  local i, seq = tonumber(ARGV[at]), ARGV[at + 1]
  if tonumber(seq) > stored[i] then
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'journal', journals[i], 'seq', seq, 'record', ARGV[at + 2])
    stored[i], last[i] = tonumber(seq), seq
  end
end
for i, seq in pairs(last) do redis.call('HSET', KEYS[2], field(i), seq) end
return {'ok', '', ''}
