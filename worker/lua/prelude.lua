-- Shared by all transitions: time, keys, appending events, closing a job. Prepended to each script.
local PREFIX = 'erase:'
local OPEN = PREFIX .. 'open'
local OPEN_PIXELS = PREFIX .. 'open_pixels'
local DEAD = PREFIX .. 'dead'
local COUNTERS = PREFIX .. 'counters'
local SPARE_WAKEUPS = 100
local REPLIES_KEPT = 20000
local REPLIES_TTL_MS = 3600000
local GONE_KNOWN_MS = 24 * 3600 * 1000
local FINAL = {succeeded = true, failed = true, cancelled = true, expired = true, dead = true}

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function job_key(id) return PREFIX .. 'job:' .. id end
local function events_key(id) return PREFIX .. 'events:' .. id end
local function watchers_key(id) return PREFIX .. 'watchers:' .. id end
local function image_key(sha256) return PREFIX .. 'image:' .. sha256 end

local function gone_key(id) return PREFIX .. 'gone:' .. id end
local function owner_open_key(owner) return PREFIX .. 'owner:' .. owner .. ':open' end
local function owner_jobs_key(owner) return PREFIX .. 'owner:' .. owner .. ':jobs' end

local function field(id, name) return redis.call('HGET', job_key(id), name) end
local function number(id, name) return tonumber(field(id, name) or '0') end

-- The job's idempotency record, as long as it still stands for this job.
local function idem_of(id)
  local idem = field(id, 'idem')
  if idem and idem ~= '' and redis.call('HGET', idem, 'job') == id then return idem end
end

-- An open job counts against its owner and the deployment, its images' pixels against the deployment.
local function open(id, owner, pixels, at)
  redis.call('ZADD', OPEN, at, id)
  if redis.call('SADD', owner_open_key(owner), id) == 1 and pixels > 0 then
    redis.call('INCRBY', OPEN_PIXELS, pixels)
  end
end

-- Counted back once: a job accepted by a service that did not count it yet is not in the set.
local function uncount(id)
  if redis.call('SREM', owner_open_key(field(id, 'owner')), id) == 1 and number(id, 'pixels') > 0 then
    redis.call('DECRBY', OPEN_PIXELS, number(id, 'pixels'))
  end
end

-- When `open` is to be looked at again: never after the deadline, or a renewed lease would keep a job open for ever.
local function check_at(id, at) redis.call('ZADD', OPEN, math.min(at, number(id, 'deadline_ms')), id) end

-- The event first: a script that fails is not rolled back, and a number without its event would pass for written.
local function append(id, type, data)
  redis.call('XADD', events_key(id), string.format('%d-0', number(id, 'seq') + 1), 'type', type, 'data', data)
  redis.call('HINCRBY', job_key(id), 'seq', 1)
end

local function notify(id, type)
  for _, service in ipairs(redis.call('HKEYS', watchers_key(id))) do
    local replies = PREFIX .. 'replies:' .. service
    redis.call('XADD', replies, 'MAXLEN', '~', REPLIES_KEPT, '*', 'job', id, 'type', type)
    redis.call('PEXPIRE', replies, REPLIES_TTL_MS)
  end
end

-- The only way into a final state: state, outcome, final event, notice and expiry in one step.
local function close(id, state, type, outcome)
  local ttl = number(id, 'result_ttl_ms')
  if state == 'dead' then ttl = math.max(ttl, number(id, 'dead_ttl_ms')) end
  redis.call('HSET', job_key(id), 'state', state, 'outcome', outcome, 'finished_ms', now_ms())
  append(id, type, outcome)
  notify(id, type)
  redis.call('ZREM', OPEN, id)
  uncount(id)
  redis.call('PEXPIRE', job_key(id), ttl)
  redis.call('PEXPIRE', events_key(id), ttl)
  redis.call('PEXPIRE', watchers_key(id), ttl)
  local idem = idem_of(id)
  if idem then redis.call('PEXPIRE', idem, ttl) end
  redis.call('SET', gone_key(id), field(id, 'owner'), 'PX', ttl + GONE_KNOWN_MS)
  redis.call('HINCRBY', COUNTERS, 'finished:' .. state, 1)
  -- What a client asked wrongly is nobody's failure but its own.
  if state == 'failed' and cjson.decode(outcome).problem.status < 500 then
    redis.call('HINCRBY', COUNTERS, 'faulty', 1)
  end
end

local function image_keys(id)
  local keys = {}
  for _, image in ipairs(cjson.decode(field(id, 'request')).images) do table.insert(keys, image_key(image.sha256)) end
  return keys
end

-- A dead letter stays, with its images, until somebody has looked at it; `dead` remembers until when.
local function bury(id, outcome)
  close(id, 'dead', 'error', outcome)
  local ttl = redis.call('PTTL', job_key(id))
  redis.call('ZREMRANGEBYSCORE', DEAD, '-inf', now_ms())
  redis.call('ZADD', DEAD, now_ms() + ttl, id)
  for _, key in ipairs(image_keys(id)) do redis.call('PEXPIRE', key, ttl, 'GT') end
end

-- Attempts that count against the limit: a worker that drains gives its attempt back, and a later one counts only from
-- `begin` on, so that a job is not given up for what another one did to the worker in which it waited for its turn.
local function failures(id) return number(id, 'attempt') - number(id, 'released') end
local function uncounted(id) return number(id, 'uncounted') == number(id, 'attempt') end

local function owns(id, attempt)
  return field(id, 'state') == 'running' and number(id, 'attempt') == tonumber(attempt)
end

-- Reply to a write of an attempt that does not hold the job. It is counted where another one does, or did: what ended
-- under its holder (a client left) is nobody's fault.
local function refuse(id, attempt)
  local state = field(id, 'state')
  if state and number(id, 'attempt') ~= tonumber(attempt) then redis.call('HINCRBY', COUNTERS, 'fenced_writes', 1) end
  return {'stale', state or 'gone'}
end

