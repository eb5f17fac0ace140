-- emit: one more event of the attempt that holds the job; a stale attempt is refused.
local id, attempt, type, data = unpack(ARGV)
if not owns(id, attempt) then
  redis.call('HINCRBY', COUNTERS, 'fenced_writes', 1)
  return {'stale', field(id, 'state') or 'gone'}
end
local seq = append(id, type, data)
notify(id)
return {'ok', seq}
