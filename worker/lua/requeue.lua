-- requeue: a dead letter becomes an open job again, as if its last attempt had only been given back.
local id, timeout_ms, image_ttl_ms = unpack(ARGV)
local now = now_ms()
local state = field(id, 'state')
if not state then return {'gone'} end
if state ~= 'dead' then return {'not-dead', state} end
for _, key in ipairs(image_keys(id)) do
  if redis.call('EXISTS', key) == 0 then return {'missing', state} end
end
for _, key in ipairs(image_keys(id)) do redis.call('PEXPIRE', key, image_ttl_ms, 'GT') end
-- The error was its last event. What comes next takes its number, which a stream never gives back: write it anew.
local last = number(id, 'seq') - 1
local kept = redis.call('XRANGE', events_key(id), '-', string.format('%d-0', last))
redis.call('DEL', events_key(id))
for _, entry in ipairs(kept) do redis.call('XADD', events_key(id), entry[1], unpack(entry[2])) end
redis.call('HDEL', job_key(id), 'outcome', 'finished_ms')
redis.call('HSET', job_key(id), 'state', 'accepted', 'seq', last, 'released', number(id, 'attempt'), 'wakes', 0,
  'lease_until_ms', 0, 'deadline_ms', now + tonumber(timeout_ms), 'detached', '1')
redis.call('PERSIST', job_key(id))
redis.call('PERSIST', watchers_key(id))
local idem = field(id, 'idem')
if idem and idem ~= '' then redis.call('PERSIST', idem) end
redis.call('DEL', gone_key(id))
redis.call('ZREM', DEAD, id)
open(id, field(id, 'owner'), number(id, 'pixels'), now)
redis.call('HINCRBY', COUNTERS, 'requeued', 1)
return {'ok', 'accepted'}
