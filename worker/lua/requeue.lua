-- requeue: a dead letter becomes an open job again, as if its last attempt had only been given back.
local id, timeout_ms, image_ttl_ms, listed_ms = unpack(ARGV)
local now = now_ms()
local state = field(id, 'state')
if not state then
  redis.call('ZREM', DEAD, id)
  return {'gone'}
end
if state ~= 'dead' then return {'not-dead', state} end
for _, key in ipairs(image_keys(id)) do
  if redis.call('EXISTS', key) == 0 then return {'missing', state} end
end
for _, key in ipairs(image_keys(id)) do redis.call('PEXPIRE', key, image_ttl_ms, 'GT') end
-- The error was its last event. Its number is never used again: a client may have read it.
redis.call('XDEL', events_key(id), string.format('%d-0', number(id, 'seq')))
redis.call('PERSIST', events_key(id))
-- Without a token out nothing binds the next attempt to the model and the plan of the last one.
if redis.call('XLEN', events_key(id)) == 0 then redis.call('HDEL', job_key(id), 'plan') end
redis.call('HDEL', job_key(id), 'outcome', 'finished_ms')
redis.call('HSET', job_key(id), 'state', 'accepted', 'queued_ms', now, 'released', number(id, 'attempt'), 'wakes', 0,
  'lease_until_ms', 0, 'deadline_ms', now + tonumber(timeout_ms), 'detached', '1')
redis.call('PERSIST', job_key(id))
-- Who waited has had the error, and whoever asks again is counted again.
redis.call('DEL', watchers_key(id))
local idem = idem_of(id)
if idem then redis.call('PERSIST', idem) end
redis.call('DEL', gone_key(id))
redis.call('ZREM', DEAD, id)
local jobs = owner_jobs_key(field(id, 'owner'))
redis.call('ZADD', jobs, 0, id)
redis.call('PEXPIRE', jobs, listed_ms)
open(id, field(id, 'owner'), number(id, 'pixels'), now)
redis.call('HINCRBY', COUNTERS, 'requeued', 1)
return {'ok', 'accepted'}
