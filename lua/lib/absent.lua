-- Which ids asked for have no reservation: many are looked up at once, which costs a quarter.
--- @include keys.lua
local LOOKED_UP_AT_ONCE = 32
local names, looked_up_to, all_absent = {}, 0, false -- keys by the number of the command
local held_here = {} -- ids that this call has held

-- The key of this command, if there is surely nothing there; else nil or false: look.
local function absent_key(values, starts, number)
  if number > looked_up_to then
    looked_up_to = math.min(number + LOOKED_UP_AT_ONCE - 1, #starts)
    for i = number, looked_up_to do
      names[i] = reservation_key(values[starts[i]])
    end
    all_absent = redis.call('EXISTS', unpack(names, number, looked_up_to)) == 0
  end
  return all_absent and not held_here[values[starts[number]]] and names[number]
end
