-- Which ids asked for have no reservation: many are looked up at once, which costs a quarter.
--- @include asked.lua
--- @include keys.lua
local LOOKED_UP_AT_ONCE = 32
local absent, looked_up_to = {}, 0 -- id → its key; whoever writes a reservation takes its id out

local function look_up(values, at)
  local ids, names = {}, {}
  while at <= #values and #ids < LOOKED_UP_AT_ONCE do
    ids[#ids + 1], names[#names + 1] = values[at], reservation_key(values[at])
    at = next_asked(values, at)
  end
  looked_up_to = at - 1
  if redis.call('EXISTS', unpack(names)) == 0 then
    for i = 1, #ids do
      absent[ids[i]] = names[i]
    end
  end
end

-- The key of the command that begins at this place, if there is surely nothing there. (Nil: look.)
local function absent_key(values, at)
  if at > looked_up_to then
    look_up(values, at)
  end
  return absent[values[at]]
end
