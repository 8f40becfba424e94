-- Decide many commands in order, within what one call may do: 512 commands and 4,000 lines, the ones
-- found in reservations and taken back included. What comes beyond is `more_due`, and so is a later command
-- on an id whose earlier one is. At least one is decided a call.
--- @include lines.lua
local COMMANDS_MAX = 512

-- Commands come flat, one after the other, the id of each first. Where each begins, if all have so many
-- values.
local function starts_every(width, values)
  local starts = {}
  for at = 1, #values, width do
    starts[#starts + 1] = at
  end
  return starts
end

-- `decide` is given the place where a command begins, and its number.
local function decide_each(values, starts, decide)
  local answers, undecided = {}, nil
  for i = 1, #starts do
    local at = starts[i]
    local answer = 'more_due'
    if not (undecided and undecided[values[at]] or i > COMMANDS_MAX or lines_done >= LINES_MAX) then
      answer = decide(at, i)
    end
    if answer == 'more_due' then
      undecided = undecided or {}
      undecided[values[at]] = true
    end
    answers[i] = answer
  end
  return answers
end
