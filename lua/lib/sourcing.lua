-- Which lines can be held, and where. Lines with a location are served first, the others from what
-- those leave; the resulting lines are unique by sku and location.
--- @include stock.lua
local locations_of = {}

local function by_most_available(a, b)
  local more, less = available(a), available(b)
  if more ~= less then
    return more > less
  end
  return a.location < b.location
end

local function locations(sku)
  if not locations_of[sku] then
    local found = redis.pcall('SMEMBERS', locations_key(sku))
    if found.err then
      tell_damaged(locations_key(sku))
      found = {}
    end
    locations_of[sku] = found
  end
  return locations_of[sku]
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
    end
  end
  table.sort(others, by_most_available)
  for _, s in ipairs(others) do
    records[#records + 1] = s
  end
  return records
end

-- One location where any can fill the line, else split. Appends to `takes` {record, quantity, …};
-- answers what is there in all where that is short.
local function source_line(sku, quantity, given, takes)
  local records, sum = candidates(sku, given), 0
  for _, s in ipairs(records) do
    if available(s) >= quantity then
      s.held = s.held + quantity
      takes[#takes + 1], takes[#takes + 2] = s, quantity
      return nil
    end
    sum = sum + math.max(available(s), 0)
  end
  if sum < quantity then
    return sum
  end
  for _, s in ipairs(records) do
    local part = math.min(math.max(available(s), 0), quantity)
    if part > 0 then
      s.held = s.held + part
      takes[#takes + 1], takes[#takes + 2] = s, part
      quantity = quantity - part
    end
  end
end

local function undo(takes)
  for i = 1, #takes, 2 do
    takes[i].held = takes[i].held - takes[i + 1]
  end
end

-- Hold all lines (flat: sku, location or '', quantity) in the records in memory. Answers what was
-- taken, or nil and the short lines (flat: sku, location or '', requested, available), or nil, nil
-- and a sku that no movement has ever named.
local function source(lines, given)
  local takes, short = {}, {}
  local function unknown(sku)
    return #locations(sku) == 0
  end
  for pass = 1, 2 do
    for i = 1, #lines, 3 do
      local sku, location, quantity = lines[i], lines[i + 1], lines[i + 2]
      if pass == 1 and location ~= '' then
        local s = stock(sku, location)
        if s and available(s) >= quantity then
          s.held = s.held + quantity
          takes[#takes + 1], takes[#takes + 2] = s, quantity
        elseif not s and unknown(sku) then
          undo(takes)
          return nil, nil, sku
        else
          short[#short + 1] = {sku, location, quantity, s and math.max(available(s), 0) or 0}
        end
      elseif pass == 2 and location == '' then
        if unknown(sku) then
          undo(takes)
          return nil, nil, sku
        end
        local sum = source_line(sku, quantity, given and given[(i + 2) / 3], takes)
        if sum then
          short[#short + 1] = {sku, '', quantity, sum}
        end
      end
    end
  end
  if #short > 0 then
    undo(takes)
    return nil, short
  end
  return takes
end

-- The lines as held: one a record, in the order they were taken.
local function merged(takes)
  local lines, at = {}, {}
  for i = 1, #takes, 2 do
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
