-- release: a draining worker gives the job back; the attempt does not count against it.
local id, attempt = unpack(ARGV)
if not owns(id, attempt) then return refuse(id, attempt) end
if uncounted(id) then
  redis.call('HDEL', job_key(id), 'uncounted')
else
  redis.call('HINCRBY', job_key(id), 'released', 1)
end
redis.call('HSET', job_key(id), 'state', 'accepted', 'lease_until_ms', 0)
redis.call('ZADD', OPEN, now_ms(), id)
return {'ok'}
