-- expire: end an open job whose deadline has passed, whoever notices first.
local id, outcome = unpack(ARGV)
local state = field(id, 'state')
if not state then return {'gone'} end
if not FINAL[state] and now_ms() >= number(id, 'deadline_ms') then
  close(id, 'expired', 'error', outcome)
  state = 'expired'
end
return {'ok', state}
