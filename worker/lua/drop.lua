-- drop: forget a job that has ended, in a minute: who waits for it still reads how it ended. An open job stays.
local id = unpack(ARGV)
redis.call('ZREM', DEAD, id)
local state = field(id, 'state')
if not state then return {'gone'} end
if not FINAL[state] then return {'ok', state} end
local idem = idem_of(id)
if idem then redis.call('DEL', idem) end
redis.call('ZREM', owner_jobs_key(field(id, 'owner')), id)
for _, key in ipairs({job_key(id), events_key(id), watchers_key(id)}) do redis.call('PEXPIRE', key, 60000, 'LT') end
return {'gone'}
