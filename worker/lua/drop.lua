-- drop: forget a job that has ended; only its id's owner stays known, so that it answers 410. An open job stays.
local id = unpack(ARGV)
local state = field(id, 'state')
if not state then return {'gone'} end
if not FINAL[state] then return {'ok', state} end
local idem = field(id, 'idem')
if idem and idem ~= '' and redis.call('HGET', idem, 'job') == id then redis.call('DEL', idem) end
redis.call('ZREM', DEAD, id)
redis.call('ZREM', owner_jobs_key(field(id, 'owner')), id)
redis.call('DEL', job_key(id), events_key(id), watchers_key(id))
return {'gone'}
