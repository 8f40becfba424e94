-- Decide many commands in order, within what one call may do: 512 commands and 4,000 lines, the ones
-- found in reservations and taken back included. What comes beyond is `more_due`, and so is a later command
-- on an id whose earlier one is. At least one is decided a call.
local COMMANDS_MAX, LINES_MAX = 512, 4000

local function decide_each(commands, decide, lines_done)
  local answers, undecided = {}, {}
  for i = 1, #commands do
    local command = commands[i]
    local answer = 'more_due'
    if not (undecided[command[1]] or i > COMMANDS_MAX or (i > 1 and lines_done() >= LINES_MAX)) then
      answer = decide(command)
    end
    if answer == 'more_due' then
      undecided[command[1]] = true
    end
    answers[i] = answer
  end
  return answers
end
