-- sweep: what to do about one open job that is due for a check: nothing, end it, or wake a worker again.
local id, wake_after_ms, max_attempts, expired, dead, due_by_ms = unpack(ARGV)
local now = now_ms()
local state = field(id, 'state')
if not state or FINAL[state] then
  redis.call('ZREM', OPEN, id)
  return {'none'}
end
-- Two sweepers may have seen the same list of due jobs: the second one finds the job checked already.
if tonumber(redis.call('ZSCORE', OPEN, id) or 0) > tonumber(due_by_ms) then return {'none'} end
if now >= number(id, 'deadline_ms') then
  close(id, 'expired', 'error', expired)
  return {'ended', 'expired'}
end
if state == 'running' then
  local lease_until = number(id, 'lease_until_ms')
  if lease_until > now then
    check_at(id, lease_until)
    return {'none'}
  end
  if failures(id) >= tonumber(max_attempts) then
    bury(id, dead)
    return {'ended', 'dead'}
  end
end
-- A wake-up that still waits in a busy queue is not lost: check again later, each time less often.
local queue = field(id, 'queue')
local wakes = redis.call('HINCRBY', job_key(id), 'wakes', 1)
local wait = tonumber(wake_after_ms)
if redis.call('LLEN', queue) > 0 then wait = wait * math.min(2 ^ wakes, 16) end
check_at(id, now + wait)
redis.call('HINCRBY', COUNTERS, 'wakeups_resent', 1)
-- Who has been worked on since it began to wait has waited already: its wake-up goes to the head of the queue.
local begun = number(id, 'attempt') > 0 and number(id, 'leased_ms') >= number(id, 'queued_ms')
return {'wake', queue, begun and 'first' or 'last'}
