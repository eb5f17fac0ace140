-- accept: a new job, its idempotency record, its place in `open`, its images' expiry and its wake-up, or nothing at all.
local a = cjson.decode(ARGV[1])
local now = now_ms()

local function watch(id)
  if a.service == '' then return end
  redis.call('HINCRBY', watchers_key(id), a.service, 1)
  local ttl = redis.call('PTTL', job_key(id))
  if ttl > 0 then redis.call('PEXPIRE', watchers_key(id), ttl) end
end

-- The service asks again when the connection broke before it read the reply.
if redis.call('EXISTS', job_key(a.id)) == 1 then
  -- Something is written, so that WAITAOF on this connection waits for the job, too.
  redis.call('HSET', job_key(a.id), 'id', a.id)
  return {'accepted', a.id}
end
if a.idem ~= '' then
  local known = redis.call('HMGET', a.idem, 'job', 'body')
  if known[1] and redis.call('EXISTS', job_key(known[1])) == 1 then
    if known[2] ~= a.body then return {'mismatch', known[1]} end
    watch(known[1])
    -- As above: to be told of the job is to be promised it.
    redis.call('HSET', job_key(known[1]), 'id', known[1])
    return {'attached', known[1]}
  end
end
if redis.call('ZCARD', OPEN) >= a.max_open then return {'full', 'jobs'} end
if a.max_open_pixels > 0 and tonumber(redis.call('GET', OPEN_PIXELS) or 0) + a.pixels > a.max_open_pixels then
  return {'full', 'pixels'}
end
if a.max_owner_open > 0 and redis.call('SCARD', owner_open_key(a.owner)) >= a.max_owner_open then
  return {'full', 'owner'}
end
for _, sha256 in ipairs(a.images) do
  if redis.call('EXISTS', image_key(sha256)) == 0 then return {'missing', sha256} end
end
for _, sha256 in ipairs(a.images) do
  redis.call('PEXPIRE', image_key(sha256), a.image_ttl_ms, 'GT')
end
local deadline = now + a.timeout_ms
redis.call('HSET', job_key(a.id), 'id', a.id, 'state', 'accepted', 'owner', a.owner, 'version', a.version,
  'priority', a.priority, 'queue', a.queue, 'request', a.request, 'accepted_ms', now, 'queued_ms', now, 'deadline_ms', deadline,
  'result_ttl_ms', a.result_ttl_ms, 'dead_ttl_ms', a.dead_ttl_ms, 'detached', a.detached, 'idem', a.idem,
  'pixels', a.pixels,
  'attempt', 0, 'released', 0, 'wakes', 0, 'seq', 0, 'request_id', a.request_id, 'trace', a.trace)
if a.idem ~= '' then
  redis.call('HSET', a.idem, 'job', a.id, 'body', a.body)
  redis.call('PERSIST', a.idem)
end
open(a.id, a.owner, a.pixels, now + a.wake_after_ms)
local jobs = owner_jobs_key(a.owner)
redis.call('ZREMRANGEBYLEX', jobs, '-', '(' .. a.forget_before)
redis.call('ZADD', jobs, 0, a.id)
redis.call('PEXPIRE', jobs, a.listed_ms)
redis.call('HINCRBY', COUNTERS, 'accepted', 1)
watch(a.id)
-- Whatever is wrong with the queue: the job is accepted, and the sweeper wakes a worker for it. It does, too, where the
-- queue is long with wake-ups of jobs that have ended: without a worker nobody takes them out.
local waiting = redis.pcall('LLEN', a.queue)
local stale = type(waiting) == 'number' and waiting > 2 * redis.call('ZCARD', OPEN) + SPARE_WAKEUPS
if a.wakeup ~= '' and not stale then redis.pcall('LPUSH', a.queue, a.wakeup) end
return {'accepted', a.id}
