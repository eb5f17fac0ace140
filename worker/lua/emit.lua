-- emit: event number `expected` of the attempt that holds the job; a stale attempt is refused, a repetition is not.
-- An event whose predecessor is missing is refused, too: it would take the other's number.
local id, attempt, expected, type, data = unpack(ARGV)
if not owns(id, attempt) then return refuse(id, attempt) end
local missing = tonumber(expected) - number(id, 'seq')
if missing > 1 then return {'gap', 'gap'} end
-- A retry after a lost reply must not write the same tokens twice.
if missing == 1 then
  append(id, type, data)
  notify(id, type)
end
return {'ok'}
