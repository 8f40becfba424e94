#!lua flags=allow-oom
-- One part at a time trims the outbox, and head says which: keep its lease, note what is safe elsewhere
-- (Kafka has acknowledged it, or the ledger has committed it), take away what of that was kept for long
-- enough. Refuses everybody else.
--
-- KEYS  1 head      hash    epoch, seq, trimmer, lease, lease_until_ms, acknowledged_epoch,
--                           acknowledged_seq, acknowledged_bytes, trimmed_seq, trimmed_bytes
--       2 deadlines zset    the deadlines that have reservations, in ms
--       3 outbox    stream  one entry a call, id epoch-seq
-- ARGV  1 holder    '<role>:<what tells this process from others>'
--       2 lease_ms  how long the lease lasts from now; 0 gives it back
--       3 role      becomes the trimmer; '' leaves whoever is
--       4 epoch     of the last event that is safe; '' for nothing new
--       5 seq       of the last event that is safe
--       6 bytes     of the events that have become so; '' where fewer are safe than were: the ledger fell back
--       7 opening   the epoch that was open when they were read; '' for whoever opens it himself
--       8 to_epoch  of the last event to take away; '' for none
--       9 to_seq    of the last event to take away
--      10 kept      bytes of those that are safe and stay
--      11 takes     1: from another process of the same role, which was replaced
-- RETURNS {kept, trimmer} | {taken, holder, ms left} | {other_trimmer, trimmer} | {opened_anew} | {no_head}
--- @include lib/acknowledged.lua
--- @include lib/lease.lua
--- @include lib/open.lua
--- @include lib/promoted.lua
--- @include lib/writes_when_full.lua
local holder, lease_ms, role = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local epoch, seq, bytes, opening = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local to_epoch, to_seq, kept_bytes = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])
local takes = ARGV[11] == '1'

if not read_head() then
  return {'no_head'}
end
local kept = redis.call('HMGET', KEYS[1], 'lease', 'lease_until_ms', 'trimmer')
local last, left = kept[1] or holder, lease_left_ms(kept[2])
local was_replaced = takes and role_of(last) == role_of(holder)
if last ~= holder and (epoch or to_epoch or left > 0 and not was_replaced) then
  return {'taken', last, left} -- whoever was away can't know what is safe since
end
local trimmer = role ~= '' and role or kept[3] or ''
local is_trimmer = trimmer == role_of(holder)
if epoch and not is_trimmer then
  return {'other_trimmer', trimmer} -- it took over while this one was away
end
local is_as_read = not opening or opening == head.epoch
if epoch and not is_as_read then
  return {'opened_anew'} -- what was read before is not what is in here now
end

begin_writes()
close_if_promoted()
redis.call('HSET', KEYS[1], 'lease', holder, 'lease_until_ms', integer(head.server_ms + lease_ms))
if role ~= '' then
  redis.call('HSET', KEYS[1], 'trimmer', role)
end
if epoch and bytes then
  acknowledge(epoch, seq, bytes)
elseif epoch then
  take_back_acknowledged(epoch, seq)
end
if to_epoch and is_trimmer and is_as_read then
  take_away(to_epoch, to_seq, kept_bytes)
end
return {'kept', trimmer}
