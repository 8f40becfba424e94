-- Write what was decided: stock records, head and outbox entry. The last thing a script does; nothing
-- in it can fail (the outbox id is above the last one: open.lua has checked that).
--- @include outbox.lua
--- @include stock.lua
local function finish(answers)
  write_stocks()
  write_outbox()
  return {head.now, answers, damaged}
end
