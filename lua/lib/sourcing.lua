-- Which lines can be held, and where. Lines with a location are served first, the others from what
-- those leave; the resulting lines are unique by sku and location.
--- @include ranked.lua
--- @include stock.lua
local HANDFUL = 8 -- with more locations a sku has a ranking
local locations_of = {}

-- So many at most that one sees whether there are more than a handful.
local function locations(sku)
  local found = locations_of[sku]
  if not found then
    found = read_locations(sku, HANDFUL + 1)
    locations_of[sku] = found
  end
  return found
end

-- Of the command at hand, flat, each with the number of its values.
local takes, taken = {}, 0 -- record, quantity
local shorts, short = {}, 0 -- sku, location or '', requested, available

local function take_from(s, quantity)
  hold(s, quantity)
  takes[taken + 1], takes[taken + 2] = s, quantity
  taken = taken + 2
end

local function undo()
  for i = 1, taken, 2 do
    local s = takes[i]
    hold(s, -takes[i + 1])
    if ranks[s.sku] then
      note_change(s)
    end
  end
end

-- What the lines with a location of the command at hand have taken from, by sku; nil until it is asked for.
local located

-- Those of this sku, most available first.
local function located_of(sku)
  if not located then
    located = {}
    for i = 1, taken, 2 do
      local of_sku = located[takes[i].sku] or {}
      of_sku[takes[i]], located[takes[i].sku] = true, of_sku
    end
  end
  local mine = {}
  for s in pairs(located[sku] or {}) do
    if s.available ~= s.ranked then
      mine[#mine + 1] = s
    end
  end
  table.sort(mine, by_most_available)
  return mine
end

-- The stock record at a location that wasn't looked at so far counts as a line, but for the first one.
local function look_at(sku, location, looked)
  local of_sku = stocks[sku]
  if looked > 0 and not (of_sku and of_sku[location] ~= nil) then
    lines_done = lines_done + 1
  end
  return stock(sku, location)
end

local function few_records(sku, seen, looked)
  local records = {}
  for _, location in ipairs(locations(sku)) do
    local s = not seen[location] and look_at(sku, location, looked + #records)
    if s then
      records[#records + 1] = s
    elseif s == false and not seen[location] then
      tell_damaged(stock_key(sku, location))
    end
  end
  table.sort(records, by_most_available)
  return records
end

local function sum_of(records)
  local sum = 0
  for _, s in ipairs(records) do
    sum = sum + math.max(s.available, 0)
  end
  return sum
end

-- Take from one location where any can fill the line, else from several: the given ones in their order, then the
-- others, most available first. Answers what is there in all where that is short, and then takes nothing.
local function source_line(sku, quantity, given)
  local is_ranked = #locations(sku) > HANDFUL
  if is_ranked and not given and (taken == 0 or #located_of(sku) == 0) then
    local rank = rank_of(sku)
    if rank.sum and rank.sum < quantity then
      return rank.sum
    end
    local s = leader_of(rank)
    if s and s.available >= quantity then
      return take_from(s, quantity)
    end
  end
  local records, seen = {}, {}
  for _, location in ipairs(given or {}) do
    local s = not seen[location] and look_at(sku, location, #records)
    if s and s.available >= quantity then
      return take_from(s, quantity)
    end
    records[#records + 1] = s or nil
    seen[location] = true
  end
  local sum = sum_of(records)
  local others = not is_ranked and few_records(sku, seen, #records)
    or ranked_records(sku, seen, located_of(sku), quantity, quantity - sum)
  if not others then
    return 0
  elseif others[1] and others[1].available >= quantity then
    return take_from(others[1], quantity)
  end
  sum = sum + sum_of(others)
  if sum < quantity then
    return sum
  end
  for _, s in ipairs(others) do
    records[#records + 1] = s
  end
  for _, s in ipairs(records) do
    local part = math.min(math.max(s.available, 0), quantity)
    if part > 0 then
      take_from(s, part)
      quantity = quantity - part
    end
  end
end

local function add_short(sku, location, requested, available)
  local n = short
  shorts[n + 1], shorts[n + 2], shorts[n + 3], shorts[n + 4] = sku, location, requested, available
  short = n + 4
end

-- Hold all lines (flat: sku, location or '', quantity, from `first` to `last`) in the records in memory:
-- `takes` is what was taken. Else nothing is, and it answers false with the short lines in `shorts`, or with
-- a sku that no movement has ever named, or `too_much` is set.
local function source(lines, first, last, given)
  local anywhere
  taken, short = 0, 0
  for i = first, last, 3 do
    local sku, location, quantity = lines[i], lines[i + 1], lines[i + 2]
    local s = location ~= '' and stock(sku, location)
    if s and s.available >= quantity then
      take_from(s, quantity)
    elseif not s and #locations(sku) == 0 then
      undo()
      return false, sku
    elseif location == '' then
      anywhere = true
    else
      add_short(sku, location, quantity, s and s.available > 0 and s.available or 0)
    end
  end
  if anywhere then
    located = nil
    for i = first, last, 3 do
      if lines[i + 1] == '' and not too_much then
        local sum = source_line(lines[i], lines[i + 2], given ~= 0 and given[(i - first) / 3 + 1])
        if sum then
          add_short(lines[i], '', lines[i + 2], sum)
        end
      end
    end
  end
  if short > 0 then
    undo()
    return false
  end
  return true
end

-- A copy, for an answer.
local function shortages()
  local copy = {}
  for i = 1, short do
    copy[i] = shorts[i]
  end
  return copy
end

-- The lines as held: one a record, in the order they were taken.
local function merged()
  local lines, at = {}, {}
  for i = 1, taken, 2 do
    local s, quantity = takes[i], takes[i + 1]
    if at[s] then
      lines[at[s]] = lines[at[s]] + quantity
    else
      lines[#lines + 1], lines[#lines + 2], lines[#lines + 3] = s.sku, s.location, quantity
      at[s] = #lines
    end
  end
  return lines
end
