-- begin_writes() of a script that a full server is to refuse. On Redis 6.2, which knows no flags,
-- the first write decides it, so it comes before any take-back.
--- @include open.lua
local began = false

local function begin_writes()
  if not began then
    redis.call('HSET', KEYS[1], 'last_ms', integer(head.now))
    began = true
  end
end
