-- Where a sku is kept.
--- @include damage.lua
--- @include keys.lua

-- All of them, or `most` of them where there are more.
local function read_locations(sku, most)
  local key = locations_key(sku)
  -- With so many or fewer in the set, SRANDMEMBER answers them all.
  local found = most and redis.pcall('SRANDMEMBER', key, most) or redis.pcall('SMEMBERS', key)
  if found.err then
    tell_damaged(key)
    return {}
  end
  return found
end
