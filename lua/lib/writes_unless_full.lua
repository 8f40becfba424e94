-- For a script that a full server is to refuse, before it says anything else. From Redis 7 on the
-- first line does it (no flags). On 6.2 the first write decides: this one changes nothing (an empty
-- string put into a key that isn't there), but a full server refuses it.
--- @include keys.lua
--- @include types.lua
local began = false

local function begin_writes()
  if not began then
    check_types()
    began = true
  end
end

local function refuse_when_full()
  redis.call('SETRANGE', prefix .. 'nothing', 0, '')
end
