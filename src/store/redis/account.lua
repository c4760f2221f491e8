-- One step of a report: of two uses of a key the later stays, of two numbers of a journal the greater.
-- KEYS: schema, uses, uses:allowed, journals, fleet_id. ARGV: schema; the fleet that must be there (empty: any); how many uses; for
-- each: which of the two (2 or 3), the key's id, the use as JSON; then, if how far the journal is reported is told: journal, seq,
-- seal (its number and hash, or empty), since, whole_since, through, closed_seq.
local stored = redis.call('GET', KEYS[1])
if stored and stored ~= ARGV[1] then return {'schema', stored} end
local fleet = redis.call('GET', KEYS[5]) or ''
if ARGV[2] ~= '' and fleet ~= ARGV[2] then return {'foreign', fleet} end

local function is_later(told, known)
  local read, old = pcall(cjson.decode, known)
  if not read or type(old) ~= 'table' then return true end
  local new = cjson.decode(told)
  for _, member in ipairs({'ended_at', 'seq'}) do
    local mine, theirs = tonumber(new[member]) or 0, tonumber(old[member]) or 0
    if mine ~= theirs then return mine > theirs end
  end
  return tostring(new.journal) > tostring(old.journal)
end

-- Two commands for each hash, however many uses are told: Redis does nothing else meanwhile.
local at, told = 4, {[2] = {}, [3] = {}}
for _ = 1, tonumber(ARGV[3]) do
  local uses = told[tonumber(ARGV[at])]
  uses[#uses + 1] = {ARGV[at + 1], ARGV[at + 2]}
  at = at + 3
end
for key, uses in pairs(told) do
  local ids, later = {}, {}
  for i, use in ipairs(uses) do ids[i] = use[1] end
  local known = #ids > 0 and redis.call('HMGET', KEYS[key], unpack(ids)) or {}
  for i, use in ipairs(uses) do
    if not known[i] or is_later(use[2], known[i]) then
      later[#later + 1] = use[1]
      later[#later + 1] = use[2]
    end
  end
  if #later > 0 then redis.call('HSET', KEYS[key], unpack(later)) end
end
local journal, seq, seal, since, whole_since, through, closed_seq = unpack(ARGV, at)
if not journal then return {'ok', ''} end

local function known(member) return redis.call('HGET', KEYS[4], journal .. ' ' .. member) end
local function put(member, value) redis.call('HSET', KEYS[4], journal .. ' ' .. member, value) end
local greatest = {seq = seq, whole_since = whole_since, through = through, closed_seq = closed_seq}
for member, value in pairs(greatest) do
  if tonumber(value) > (tonumber(known(member) or '') or -1) then put(member, value) end
end
local earliest = tonumber(known('since') or '')
if not earliest or tonumber(since) < earliest then put('since', since) end
if seal ~= '' then
  local old = known('seal') or '-1 '
  local mine, theirs = tonumber(string.match(seal, '^%d+')), tonumber(string.match(old, '^%-?%d+'))
  if mine > theirs or mine == theirs and seal > old then put('seal', seal) end
end
return {'ok', ''}
