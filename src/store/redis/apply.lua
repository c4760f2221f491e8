-- One mutation: all of its writes or none. Everything is checked before anything is written, since a script that fails
-- half-way is not undone.
-- KEYS: head. ARGV: prefix, schema, operation, at, actor, writes (JSON), the fleet that must be there (empty: any), the fleet
-- that begins where there is none and need be none.
local prefix, schema, operation, at, actor = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local writes, expected, new_fleet = cjson.decode(ARGV[6]), ARGV[7], ARGV[8]

local function name(...) return prefix .. ':' .. table.concat({...}, ':') end
local function given(value) return value ~= nil and value ~= false and value ~= cjson.null end
local function number(value) return string.format('%.0f', value) end

local stored = redis.call('GET', name('schema'))
if stored and stored ~= schema then return {'schema', stored} end
local done = redis.call('GET', name('op', operation))
if done then return {'ok', done} end
local fleet = redis.call('GET', name('fleet_id'))
if expected ~= '' and fleet ~= expected then return {'foreign', fleet or ''} end

local staged, commands = {}, {}
local function read(key)
  if staged[key] ~= nil then return staged[key] end
  return redis.call('GET', key)
end
local function put(key, value)
  staged[key] = value
  table.insert(commands, value and {'SET', key, value} or {'DEL', key})
end

local function check_key(record, before, expected)
  if (before and number(before.version) or '') ~= expected then return {'version'} end
  if before then
    if given(before.revoked_at) and before.revoked_at ~= record.revoked_at then return {'final'} end
    if before.digest ~= record.digest or before.entity_id ~= record.entity_id then return {'final'} end
  end
  local entity = read(name('entity', record.entity_id))
  local live = entity and not given(cjson.decode(entity).deleted_at)
  if not live and not given(record.revoked_at) then return {'entity_gone', record.entity_id} end
  local holder = read(name('digest', record.digest))
  if holder and holder ~= record.id then return {'digest_taken', holder} end
end

local function check_entity(record, before, expected)
  if before and expected == '' then return {'entity_id_taken', record.id} end
  if (before and number(before.version) or '') ~= expected then return {'version'} end
  if before and given(before.deleted_at) then return {'final'} end
  local holder = read(name('code', record.code))
  if holder and holder ~= record.id and not given(record.deleted_at) then return {'code_taken', record.code} end
end

local function is_waiting(record) return given(record.until_quiet_s) and not given(record.revoked_at) end

local function index_key(record, before)
  put(name('digest', record.digest), record.id)
  table.insert(commands, {'ZADD', name('keys'), 0, record.id})
  table.insert(commands, {'ZADD', name('keys', record.entity_id), 0, record.id})
  if is_waiting(record) then
    table.insert(commands, {'ZADD', name('quiet'), 0, record.id})
  elseif before and is_waiting(before) then
    table.insert(commands, {'ZREM', name('quiet'), record.id})
  end
end

local function index_entity(record, before)
  if before and read(name('code', before.code)) == record.id then put(name('code', before.code), false) end
  if not given(record.deleted_at) then put(name('code', record.code), record.id) end
  table.insert(commands, {'ZADD', name('entities'), 0, record.id})
end

local head = redis.call('GET', KEYS[1])
local seq = head and tonumber(string.match(head, '^%d+')) or 0
if not fleet then table.insert(commands, {'SET', name('fleet_id'), new_fleet}) end
-- A store that has just been made has lost nothing, unless somebody knows better.
if not head and not redis.call('GET', name('fork')) then
  local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
  table.insert(commands, {'SET', name('run'), run})
end
local seqs = {}
for _, write in ipairs(writes) do
  seq = seq + 1
  local body = write.head .. number(seq) .. write.tail
  local record = cjson.decode(body)
  local key = name(record.type, record.id)
  local text = read(key)
  local before = text and cjson.decode(text) or nil
  local check = record.type == 'key' and check_key or check_entity
  local conflict = check(record, before, write.expected)
  if conflict then return conflict end
  table.insert(commands, {'XADD', name('log'), number(seq) .. '-0', 'token', write.token, 'at', at, 'actor', actor,
    'action', write.action, 'before', text or '', 'after', body})
  put(key, body)
  if record.type == 'key' then index_key(record, before) else index_entity(record, before) end
  table.insert(commands, {'ZADD', name('versions'), number(seq), record.type .. ':' .. record.id})
  table.insert(commands, {'SET', KEYS[1], number(seq) .. ' ' .. write.token})
  table.insert(seqs, number(seq))
end

local outcome = table.concat(seqs, ' ')
table.insert(commands, {'SET', name('schema'), schema})
table.insert(commands, {'SET', name('op', operation), outcome})
-- A user who may run some of the commands and not all would leave half a mutation.
for _, command in ipairs(commands) do
  if redis.acl_check_cmd and not redis.acl_check_cmd(unpack(command)) then
    return redis.error_reply('NOPERM this user may not run ' .. command[1])
  end
end
for _, command in ipairs(commands) do redis.call(unpack(command)) end
return {'ok', outcome}
