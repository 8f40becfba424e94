-- What a movement id did before.
--- @include damage.lua
--- @include keys.lua

-- The answer where this movement was applied before (or its id used for another); else nil.
local function applied_before(id, fingerprint)
  local key = movement_request_key(id)
  local kept = redis.pcall('GET', key)
  if not kept then
    return nil
  end
  local _, record = pcall(cmsgpack.unpack, kept) -- an error's text where it can't be read
  if type(record) ~= 'table' or cmsgpack.pack(record) ~= kept or #record ~= 8 then
    tell_damaged(key)
    return {'request_mismatch'} -- it was used, we can't tell for what: never apply twice
  end
  return record[1] == fingerprint and {'already_applied', kept} or {'request_mismatch'}
end
