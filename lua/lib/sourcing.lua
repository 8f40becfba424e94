-- Which lines can be held, and where. Lines with a location are served first, the others from what
-- those leave; the resulting lines are unique by sku and location.
--- @include stock.lua
local locations_of = {}

local function by_most_available(a, b)
  if a.available ~= b.available then
    return a.available > b.available
  end
  return a.location < b.location
end

local function read_locations(sku)
  local found = redis.pcall('SMEMBERS', locations_key(sku))
  if found.err then
    tell_damaged(locations_key(sku))
    return {}
  end
  return found
end

local function locations(sku)
  local found = locations_of[sku]
  if not found then
    found = read_locations(sku)
    locations_of[sku] = found
  end
  return found
end

-- Stock records of a sku: the given candidates in their order, then the others, most available first.
local function candidates(sku, given)
  local records, others, seen = {}, {}, {}
  for _, location in ipairs(given or {}) do
    local s = stock(sku, location)
    if s and not seen[location] then
      records[#records + 1] = s
    end
    seen[location] = true
  end
  for _, location in ipairs(locations(sku)) do
    local s = not seen[location] and stock(sku, location)
    if s then
      others[#others + 1] = s
    elseif s == false and not seen[location] then
      tell_damaged(stock_key(sku, location))
    end
  end
  table.sort(others, by_most_available)
  for _, s in ipairs(others) do
    records[#records + 1] = s
  end
  return records
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
    hold(takes[i], -takes[i + 1])
  end
end

-- One location where any can fill the line, else split. Answers what is there in all where that is
-- short, and then takes nothing.
local function source_line(sku, quantity, given)
  local records, sum = candidates(sku, given), 0
  for _, s in ipairs(records) do
    if s.available >= quantity then
      return take_from(s, quantity)
    end
    sum = sum + math.max(s.available, 0)
  end
  if sum < quantity then
    return sum
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
-- a sku that no movement has ever named.
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
    for i = first, last, 3 do
      if lines[i + 1] == '' then
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
