-- finish: the job's one outcome, if the attempt still holds it; otherwise what already is.
local id, attempt, state, type, outcome = unpack(ARGV)
local current = field(id, 'state')
if FINAL[current] then
  -- A repetition after a lost reply finds its own outcome.
  if number(id, 'attempt') == tonumber(attempt) and field(id, 'outcome') == outcome then return {'ok'} end
end
if not owns(id, attempt) then return refuse(id, attempt) end
close(id, state, type, outcome)
return {'ok'}
