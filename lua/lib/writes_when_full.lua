-- begin_writes() of a script that gives stock back. On Redis 6.2, which knows no flags, a script's
-- first write decides whether a full server refuses it; ZREM is never refused. '' is no deadline.
--- @include types.lua
local began = false

local function begin_writes()
  if not began then
    check_types()
    redis.call('ZREM', KEYS[2], '')
    began = true
  end
end
