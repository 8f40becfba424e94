-- Where a sku with many locations has most: `available:<sku>`, its locations by minus what is available there
-- (equally much: by code), so that sourcing needn't read them all. It is derived from the stock records, which
-- alone decide. Sourcing makes it, once it needs it; from then on whoever writes a record writes it too.
--- @include damage.lua
--- @include keys.lua
local ranks = {} -- sku → what this call knows of it (ranked.lua)

local LOOKED_UP_AT_ONCE = 64

-- The same for all records written by this call whose sku has a ranking. Most have none: so they are looked up
-- together.
local function write_ranks(records)
  local changed = {}
  for i = 1, #records do
    if records[i].available ~= records[i].ranked then
      changed[#changed + 1] = records[i]
    end
  end
  for first = 1, #changed, LOOKED_UP_AT_ONCE do
    local last, names = math.min(first + LOOKED_UP_AT_ONCE - 1, #changed), {}
    for i = first, last do
      names[#names + 1] = available_key(changed[i].sku)
    end
    if redis.call('EXISTS', unpack(names)) > 0 then
      for i = first, last do
        local s, key = changed[i], names[i - first + 1]
        if (ranks[s.sku] or redis.call('EXISTS', key) == 1)
            and type(redis.pcall('ZADD', key, 0 - s.available, s.location)) == 'table' then
          tell_damaged(key)
        end
      end
    end
  end
end
