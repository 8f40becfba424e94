-- Which ids asked for have no reservation: many are looked up at once, since a refusal costs little else.
--- @include asked.lua
--- @include keys.lua
local AT_ONCE = 32
local absent, looked_up_to = {}, 0 -- whoever writes a reservation takes its id out

local function look_up(values, at)
  local ids, names = {}, {}
  while at <= #values and #ids < AT_ONCE do
    ids[#ids + 1], names[#names + 1] = values[at], reservation_key(values[at])
    at = next_asked(values, at)
  end
  looked_up_to = at - 1
  if redis.call('EXISTS', unpack(names)) == 0 then
    for i = 1, #ids do
      absent[ids[i]] = true
    end
  end
end

-- Is there surely none for the command that begins at this place? (False: look.)
local function is_absent(values, at)
  if at > looked_up_to then
    look_up(values, at)
  end
  return absent[values[at]]
end
