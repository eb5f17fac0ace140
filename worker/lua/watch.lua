-- watch: one more request of a service process waits for the job.
local id, service = unpack(ARGV)
if redis.call('EXISTS', job_key(id)) == 0 then return {'gone'} end
redis.call('HINCRBY', watchers_key(id), service, 1)
local ttl = redis.call('PTTL', job_key(id))
if ttl > 0 then redis.call('PEXPIRE', watchers_key(id), ttl) end
return {'ok', field(id, 'state')}
