-- cancel: end an open job; a final one keeps its outcome. Always returns the state that now holds. With `forget` its
-- idempotency record goes, too: the client was told that nothing was accepted, and asks again with the same key.
local id, outcome, forget = unpack(ARGV)
local state = field(id, 'state')
if not state then return {'gone'} end
if not FINAL[state] then
  close(id, 'cancelled', 'error', outcome)
  state = 'cancelled'
end
if forget == '1' then
  local idem = idem_of(id)
  if idem then redis.call('DEL', idem) end
end
return {'ok', state}
