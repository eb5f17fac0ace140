-- lease: the right to work on a job until the lease runs out; its attempt number fences every later write.
local id, worker, lease_ms, max_attempts, expired, dead = unpack(ARGV)
local now = now_ms()
local state = field(id, 'state')
if not state then return {'gone'} end
if FINAL[state] then return {'finished', state} end
if state == 'running' and number(id, 'lease_until_ms') > now then
  -- The holder's name is new with each call, so this is the repetition of a call whose reply was lost.
  if field(id, 'worker') == worker then
    return {'granted', failures(id) + (uncounted(id) and 1 or 0), redis.call('HGETALL', job_key(id))}
  end
  return {'taken'}
end
if now >= number(id, 'deadline_ms') then
  close(id, 'expired', 'error', expired)
  return {'finished', 'expired'}
end
local failed = failures(id)
if failed >= tonumber(max_attempts) then
  bury(id, dead)
  return {'finished', 'dead'}
end
if state == 'running' then redis.call('HINCRBY', COUNTERS, 'leases_lost', 1) end
local attempt = redis.call('HINCRBY', job_key(id), 'attempt', 1)
if failed > 0 then
  redis.call('HINCRBY', job_key(id), 'released', 1)
  redis.call('HSET', job_key(id), 'uncounted', attempt)
end
local lease_until = now + tonumber(lease_ms)
redis.call('HSET', job_key(id), 'state', 'running', 'worker', worker, 'lease_until_ms', lease_until, 'leased_ms', now)
check_at(id, lease_until)
return {'granted', failed + 1, redis.call('HGETALL', job_key(id))}
