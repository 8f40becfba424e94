-- Write a reservation: its key, its place on the list of its deadline, its event.
--- @include due.lua
--- @include outbox.lua
--- @include reservation.lua
--- @include sourcing.lua
local lines_held = 0
local beginnings = {}

-- A deadline, and the bytes that are the same in all holds of this call with that deadline.
local function begin_with(ttl_ms)
  local deadline = math.ceil((head.now + ttl_ms) / 100) * 100
  local shared = beginnings[deadline]
  if not shared then
    shared = {deadline = deadline, value = cmsgpack.pack(HELD, head.now, deadline),
      event = '\150' .. cmsgpack.pack('reserve', head.now, deadline)}
    beginnings[deadline] = shared
  end
  return shared
end

-- Write what was taken for {reservation_id, ttl_ms, lines, body}. Answers nil (and nothing is
-- written or taken) where the id is kept already.
local function write_hold(command, takes)
  local id, body, seq = command[1], command[4], head.seq + 1
  if command.sourced then
    local asked = cmsgpack.unpack(body)
    body = cmsgpack.pack({asked[1], asked[2], asked[3], merged(takes)})
  end
  local shared, packed_seq = begin_with(command[2]), cmsgpack.pack(seq)
  local value = sealed(shared.value .. packed_seq .. NO_PARTS .. body)
  begin_writes()
  if not redis.call('SET', reservation_key(id), value, 'NX') then
    undo(takes)
    return nil
  end
  head.seq = seq
  for i = 1, #takes, 2 do
    touch(takes[i], seq)
  end
  add_due(shared.deadline, id)
  emit(shared.event, packed_seq, cmsgpack.pack(id), body)
  lines_held = lines_held + #takes / 2
  return command.sourced and {'reserved', value} or 'reserved'
end
