-- Before the first write: are the keys that every call writes to of their type? An error after a write
-- would leave half of it, for Redis rolls nothing back.
local function check_types()
  for key, expected in pairs({[KEYS[2]] = 'zset', [KEYS[3]] = 'stream'}) do
    local found = redis.call('TYPE', key).ok
    if found ~= 'none' and found ~= expected then
      error(key .. ' is a ' .. found .. ', not a ' .. expected)
    end
  end
end
