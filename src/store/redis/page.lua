-- Records in the order of an index, after a member or a score, and the log's head, as of one moment.
-- KEYS: index, head. ARGV: prefix, 'lex' or 'score', lower bound, limit, bytes at most (one record is always given), kind.
local range = ARGV[2] == 'lex' and 'ZRANGEBYLEX' or 'ZRANGEBYSCORE'
local upper = ARGV[2] == 'lex' and '+' or '+inf'
local records, bytes = {}, 0
for _, member in ipairs(redis.call(range, KEYS[1], ARGV[3], upper, 'LIMIT', 0, ARGV[4])) do
  local key = ARGV[1] .. ':' .. ARGV[6] .. member
  local record = redis.call('GET', key)
  if not record then return redis.error_reply('ERR the record ' .. key .. ' is missing') end
  bytes = bytes + #record
  if #records > 0 and bytes > tonumber(ARGV[5]) then break end
  table.insert(records, record)
end
return {redis.call('GET', KEYS[2]) or '0 0', records}
