-- begin: work on a later try begins, alone in its worker. From now on it counts, since it may be what kills the worker.
local id, attempt = unpack(ARGV)
if not owns(id, attempt) then return refuse(id, attempt) end
if uncounted(id) then
  redis.call('HDEL', job_key(id), 'uncounted')
  redis.call('HINCRBY', job_key(id), 'released', -1)
end
return {'ok'}
