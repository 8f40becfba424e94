-- The records of a sku with many locations, most available first, as far as they are needed.
--- @include lines.lua
--- @include locations.lua
--- @include ranking.lua
--- @include stock.lua
local CHECKED, CHECK_EVERY_MS = ':checked', 1000 -- a member of the ranking that no location can be, its time
local too_much = false -- more to be read than one call may

local function by_most_available(a, b)
  if a.available ~= b.available then
    return a.available > b.available
  end
  return a.location < b.location
end

-- What was decided so far in this call. (Units that only the command at hand has taken aren't written yet.)
local function write_changed(rank)
  local scores = {}
  for i = 1, #rank.changed do
    local s = rank.changed[i]
    if s.seq and s.available ~= s.ranked then
      scores[#scores + 1], scores[#scores + 2] = 0 - s.available, s.location
      s.ranked = s.available
    end
  end
  rank.changed, rank.leader = {}, nil
  for first = 1, #scores, 1000 do
    local written = redis.pcall('ZADD', rank.key, 'XX', unpack(scores, first, math.min(first + 999, #scores)))
    rank.broken = rank.broken or type(written) == 'table'
  end
end

-- Count all records of the sku and put the ranking right: it may be missing, or somebody may have changed a
-- record by hand or with an older program. False where this call has read enough.
local function check(rank)
  if lines_done >= LINES_MAX then
    too_much = true
    return false
  end
  local kept, found = redis.pcall('ZRANGE', rank.key, 0, -1, 'WITHSCORES'), read_locations(rank.sku)
  local scores, changes = {}, {}
  lines_done, rank.checked = lines_done + #found, true
  if kept.err then
    tell_damaged(rank.key)
    rank.broken = true
    return true
  end
  for i = 1, #kept, 2 do
    scores[kept[i]] = tonumber(kept[i + 1])
  end
  begin_writes()
  for i = 1, #found do
    local s = stock(rank.sku, found[i])
    local score = s and not s.damaged and 0 - s.ranked or 0
    if not s then
      tell_damaged(stock_key(rank.sku, found[i]))
    end
    if scores[found[i]] ~= score then
      changes[#changes + 1], changes[#changes + 2] = score, found[i]
    end
    scores[found[i]] = nil
  end
  scores[CHECKED] = nil
  for location in pairs(scores) do
    redis.call('ZREM', rank.key, location)
  end
  changes[#changes + 1], changes[#changes + 2] = integer(head.now), CHECKED
  for first = 1, #changes, 1000 do
    redis.call('ZADD', rank.key, unpack(changes, first, math.min(first + 999, #changes)))
  end
  return true
end

local function rank_of(sku)
  local rank = ranks[sku]
  if not rank then
    rank = {sku = sku, key = available_key(sku), changed = {}}
    for _, s in pairs(stocks[sku] or {}) do
      if s and s.seq then
        rank.changed[#rank.changed + 1] = s
      end
    end
    ranks[sku] = rank
  end
  return rank
end

-- Was it counted within the last second, and has it as many locations as there are?
local function is_checked(rank)
  if rank.checked == nil then
    local at = redis.pcall('ZSCORE', rank.key, CHECKED)
    at = type(at) == 'string' and tonumber(at)
    rank.checked = at and at <= head.now and at + CHECK_EVERY_MS > head.now
      and redis.call('ZCARD', rank.key) - 1 == redis.call('SCARD', locations_key(rank.sku))
  end
  return rank.checked
end

-- Hand records that offer something to `add`, most available first, until it answers true. `mine` are those that
-- the command at hand has taken from, in order; those in `seen` are left out. False where the ranking is wrong.
local function walk(rank, seen, mine, add)
  local of_sku, at, start, size = stocks[rank.sku] or {}, 1, 0, 2
  while true do
    local entries = redis.pcall('ZRANGE', rank.key, start, start + size - 1, 'WITHSCORES')
    if entries.err or #entries == 0 and start == 0 then
      return false
    end
    local last = #entries < 2 * size
    for i = 1, #entries, 2 do
      local entry = {location = entries[i], available = 0 - tonumber(entries[i + 1])}
      if not (entry.available > 0) then
        last = true
        break
      end
      lines_done = lines_done + (start + i > 1 and 1 or 0)
      if not seen[entry.location] then
        local s = of_sku[entry.location]
        if s == nil then
          s = stock(rank.sku, entry.location)
          of_sku = stocks[rank.sku]
        end
        if not s or s.damaged or s.ranked ~= entry.available then
          return false
        end
        if s.available == s.ranked then
          while mine[at] and by_most_available(mine[at], entry) do
            if add(mine[at]) then
              return true
            end
            at = at + 1
          end
          if add(s) then
            return true
          end
        end
      end
    end
    if last then
      break
    end
    start, size = start + size, size * 4
  end
  for i = at, #mine do
    if add(mine[i]) then
      return true
    end
  end
  return true
end

local AHEAD = 64

-- The next of those that were read ahead, if it has more than those before it have left; else nil.
local function lead(rank, at, left)
  local ahead = rank.ahead
  local available, second = 0 - tonumber(ahead[at + 1] or 0), 0 - tonumber(ahead[at + 3] or 0)
  local s = at + 3 <= #ahead and available > left and stock(rank.sku, ahead[at])
  if s and not s.damaged and s.ranked == available and s.available == available then
    rank.leader, rank.at, rank.left, rank.second = s, at, left, math.max(second, left)
    return s
  end
end

-- The one with most, where that is clear at a glance: nothing but the ones before it has changed since the
-- ranking was read, and they have less than it. Else nil.
local function leader_of(rank)
  local leader = rank.leader
  if leader and leader.available > rank.second then
    return leader
  end
  local s = leader and lead(rank, rank.at + 2, math.max(rank.left, leader.available))
  if s then
    return s
  end
  write_changed(rank)
  local entries = redis.pcall('ZRANGE', rank.key, 0, AHEAD - 1, 'WITHSCORES')
  rank.ahead = entries
  return not entries.err and lead(rank, 1, 0) or nil
end

-- Records that together have `needed`, or the first of which has `whole`, most available first; all that offer
-- something where there is less. Without those in `seen`. Nil where this call has read enough.
local function ranked_records(sku, seen, mine, whole, needed)
  local rank = rank_of(sku)
  write_changed(rank)
  while not rank.broken do
    local records, sum = {}, 0
    local right = walk(rank, seen, mine, function(s)
      records[#records + 1] = s
      sum = sum + math.max(s.available, 0)
      return sum >= needed or records[1].available >= whole
    end)
    if right and (records[1] and records[1].available >= whole or is_checked(rank)) then
      if sum < needed and not next(seen) and #mine == 0 then
        rank.sum = sum -- until something changes
      end
      return records
    end
    if not right and rank.checked_here then
      break
    end
    rank.checked_here = true
    if not check(rank) then
      return nil
    end
  end
  local records = {}
  for _, location in ipairs(read_locations(sku)) do
    local s = not seen[location] and stock(sku, location)
    records[#records + 1] = s or nil
  end
  lines_done = lines_done + #records
  table.sort(records, by_most_available)
  return records
end
