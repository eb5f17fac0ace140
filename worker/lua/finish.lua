-- finish: the job's one outcome, if the attempt still holds it; otherwise what already is.
local id, attempt, state, type, outcome = unpack(ARGV)
local current = field(id, 'state')
if not current then return {'stale', 'gone'} end
if FINAL[current] then return {'stale', current} end
if not owns(id, attempt) then
  redis.call('HINCRBY', COUNTERS, 'fenced_writes', 1)
  return {'stale', current}
end
close(id, state, type, outcome)
return {'ok'}
