-- finish: the job's one outcome, if the attempt still holds it; otherwise what already is.
local id, attempt, state, type, outcome = unpack(ARGV)
local current = field(id, 'state')
if not current then return {'stale', 'gone'} end
if FINAL[current] then
  -- A repetition after a lost reply finds its own outcome.
  if number(id, 'attempt') == tonumber(attempt) and field(id, 'outcome') == outcome then return {'ok'} end
  return {'stale', current}
end
if not owns(id, attempt) then
  redis.call('HINCRBY', COUNTERS, 'fenced_writes', 1)
  return {'stale', current}
end
close(id, state, type, outcome)
return {'ok'}
