-- recount: an owner's open jobs and the pixels of all open jobs, from the jobs themselves. Only a worker of a version that
-- does not count yet makes the counts drift, by ending jobs without counting them back.
local owner = unpack(ARGV)
local own = owner_open_key(owner)
for _, id in ipairs(redis.call('SMEMBERS', own)) do
  if not redis.call('ZSCORE', OPEN, id) then redis.call('SREM', own, id) end
end
local pixels = 0
for _, id in ipairs(redis.call('ZRANGE', OPEN, 0, -1)) do
  local who = field(id, 'owner')
  if who and redis.call('SISMEMBER', owner_open_key(who), id) == 1 then pixels = pixels + number(id, 'pixels') end
end
redis.call('SET', OPEN_PIXELS, pixels)
return {'ok', redis.call('SCARD', own), pixels}
