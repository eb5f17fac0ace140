-- renew: a longer lease for the attempt that still holds the job.
local id, attempt, lease_ms = unpack(ARGV)
if not owns(id, attempt) then return refuse(id, attempt) end
local lease_until = now_ms() + tonumber(lease_ms)
redis.call('HSET', job_key(id), 'lease_until_ms', lease_until)
check_at(id, lease_until)
return {'ok'}
