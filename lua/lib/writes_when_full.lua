-- begin_writes() of a script that gives stock back. On Redis 6.2, which knows no flags, a script's
-- first write decides whether a full server refuses it; ZREM is never refused. '' is no deadline.
local began = false

local function begin_writes()
  if not began then
    redis.call('ZREM', KEYS[2], '')
    began = true
  end
end
