-- Begins a fleet, unless one was begun, and gives the one that counts.
-- KEYS: schema, fleet_id. ARGV: schema, the id of the new fleet.
local stored = redis.call('GET', KEYS[1])
if stored and stored ~= ARGV[1] then return {'schema', stored} end
local fleet = redis.call('GET', KEYS[2])
if not fleet then
  fleet = ARGV[2]
  redis.call('SET', KEYS[1], ARGV[1])
  redis.call('SET', KEYS[2], fleet)
end
return {'ok', fleet}
