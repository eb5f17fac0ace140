-- unwatch: a request no longer waits; if the client left and nobody else wants the job, it is cancelled.
local id, service, left, outcome = unpack(ARGV)
if redis.call('HINCRBY', watchers_key(id), service, -1) <= 0 then redis.call('HDEL', watchers_key(id), service) end
local state = field(id, 'state')
if not state then return {'gone'} end
local wanted = field(id, 'detached') == '1' or field(id, 'idem') ~= '' or redis.call('EXISTS', watchers_key(id)) == 1
if left == '1' and not FINAL[state] and not wanted then
  close(id, 'cancelled', 'error', outcome)
  state = 'cancelled'
end
return {'ok', state}
