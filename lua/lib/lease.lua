-- The lease of the outbox: one process at a time, '<role>:<what tells it from others>', trims it.
--- @include open.lua
local LEASE_MAX_MS = 60000 -- a later end is from a clock that was set back since

local function role_of(holder)
  return string.match(holder, '^%a*')
end

local function lease_left_ms(until_ms)
  local left = (whole(until_ms) or 0) - head.server_ms
  return left <= LEASE_MAX_MS and math.max(left, 0) or 0
end
