-- What each type of movement changes, and when it is refused.
--- @include applied.lua
--- @include outbox.lua
--- @include stock.lua
local ON_HAND_MAX = 1e15
local NOTHING = {on_hand = 0, held = 0, quarantined = 0}
local CREATES = {receive = true, ['return'] = true, count = true}

-- type → function(record, quantity, restock) answering the change of on_hand and of quarantined
local CHANGES = {
  receive = function(_, quantity) return quantity, 0 end,
  ['return'] = function(_, quantity, restock) return quantity, restock and 0 or quantity end,
  damage = function(_, quantity) return -quantity, 0 end,
  transfer = function(_, quantity) return -quantity, 0 end,
  count = function(s, quantity) return quantity - s.on_hand, 0 end,
  inspect_pass = function(_, quantity) return 0, -quantity end,
  inspect_fail = function(_, quantity) return -quantity, -quantity end,
}

-- The changes of on_hand and quarantined, or nil, nil and the refusal.
local function change_of(c, s)
  local kind, sku, quantity, expected, target = c[2], c[3], c[5], c[9], nil
  if kind == 'transfer' then
    target = stock(sku, c[6])
  end
  if s.damaged or (target and target.damaged) then
    return nil, nil, {'would_break_holds', s.damaged and c[4] or c[6]}
  end
  if expected >= 0 and s.on_hand ~= expected then
    return nil, nil, {'stale_expectation', s.on_hand}
  end
  local on_hand, quarantined = CHANGES[kind](s, quantity, c[10] == 1)
  local left, checked = s.on_hand + on_hand, s.quarantined + quarantined
  local takes = on_hand < 0 or quarantined < 0 or kind == 'count'
  if takes and (checked < 0 or left < s.held + checked) then
    return nil, nil, {'would_break_holds', s.on_hand, s.held, s.quarantined}
  end
  if math.max(left, target and target.on_hand + quantity or 0) > ON_HAND_MAX then
    return nil, nil, {'invalid_request', sku}
  end
  return on_hand, quarantined
end
