-- cancel: end an open job; a final one keeps its outcome. Always returns the state that now holds.
local id, outcome = unpack(ARGV)
local state = field(id, 'state')
if not state then return {'gone'} end
if not FINAL[state] then
  close(id, 'cancelled', 'error', outcome)
  state = 'cancelled'
end
return {'ok', state}
