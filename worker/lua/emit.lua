-- emit: event number `expected` of the attempt that holds the job; a stale attempt is refused, a repetition is not.
local id, attempt, expected, type, data = unpack(ARGV)
if not owns(id, attempt) then
  redis.call('HINCRBY', COUNTERS, 'fenced_writes', 1)
  return {'stale', field(id, 'state') or 'gone'}
end
-- A retry after a lost reply must not write the same tokens twice.
if number(id, 'seq') < tonumber(expected) then
  append(id, type, data)
  notify(id)
end
return {'ok'}
