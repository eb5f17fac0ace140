-- freeze: keep the first attempt's plan; later attempts get it back.
local id, attempt, plan, replace = unpack(ARGV)
if not owns(id, attempt) then return refuse(id, attempt) end
if replace == '1' then redis.call('HSET', job_key(id), 'plan', plan) end
redis.call('HSETNX', job_key(id), 'plan', plan)
return {'ok', field(id, 'plan')}
